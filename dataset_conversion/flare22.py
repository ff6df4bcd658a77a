#!/usr/bin/env python
"""FLARE 2022: 13 abdominal organs in CT, 50 labelled and 2000 unlabelled cases.

SOURCE holds FLARE22_Tr_0001_0000.nii.gz (images) and FLARE22_Tr_0001.nii.gz (labels, 0 to 13), and unlabelled images
Case_00001_0000.nii.gz, in folders of any names and at any depth, unpacked. Folders of unlabelled images that lie elsewhere
are given with --unlabeled-from. All 50 cases keep their label by default, as in the challenge; fewer are drawn at random, and
the others become unlabelled. The challenge's test cases are not public: --use-tuning-cases takes its tuning cases
(FLARETs_0001 and so on, where their labels are there) for test cases, --test holds out some of the 50.

With --link, unlabelled files are neither copied nor linked: dataset.json names them where they lie.
"""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from nnunet_caml.conversion import Case, ConversionError, Dataset, argument_parser, find_files, main, of_one_kind, outside

ENDING, CHANNEL = ".nii.gz", "_0000.nii.gz"
UNLABELED = r"Case_\d{5}_0000\.nii\.gz"
TUNING = r"FLARETs_\d{4}"
LABELED_HELP = "how many of the 50 cases keep their label, drawn at random, or 'all' (default: all, as in the challenge)"
ORGANS = (
    *("liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland"),
    *("left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney"),
)
DATASET = Dataset(
    name="FLARE22",
    channel_names=["CT"],
    labels={"background": 0, **{organ: value for value, organ in enumerate(ORGANS, 1)}},
    in_place=True,
    reference="FLARE 2022 challenge, https://flare22.grand-challenge.org",
)


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """Labelled cases, and the unlabelled ones in SOURCE."""
    images = by_identifier(find_files(source, r"FLARE22_Tr_\d{4}_0000\.nii\.gz"), CHANNEL)
    labels = by_identifier(find_files(source, r"FLARE22_Tr_\d{4}\.nii\.gz"), ENDING)
    if not images and not labels:
        raise ConversionError(
            f"{source} holds no files such as FLARE22_Tr_0001_0000.nii.gz: SOURCE should be the folder of the download, "
            "unpacked."
        )
    # where a missing file should be
    image_folder = next(iter(images.values())).parent if images else source / "images"
    label_folder = next(iter(labels.values())).parent if labels else source / "labels"
    for identifier in sorted(images.keys() | labels.keys()):
        image = images.get(identifier, image_folder / f"{identifier}{CHANNEL}")
        yield Case(identifier, [image], labels.get(identifier, label_folder / f"{identifier}{ENDING}"))
    if options.use_tuning_cases:
        yield from tuning_cases(source)
    yield from unlabeled_cases(outside(find_files(source, UNLABELED), options.unlabeled_from))


def tuning_cases(source: Path) -> Iterable[Case]:
    """Test cases FLARETs_0001 and so on, each with the image in the folder of its label or in one beside that.

    There are other images of the same names, those of the challenge's own test cases, without labels.

    Raises:
        ConversionError: There is no label, or there are two for one case.
    """
    labels = by_identifier(find_files(source, rf"{TUNING}\.nii\.gz"), ENDING)
    if not labels:
        raise ConversionError(
            f"{source} holds no labels such as FLARETs_0001.nii.gz of the tuning cases: leave out --use-tuning-cases, or "
            "unpack a download that has them."
        )
    images = find_files(source, rf"{TUNING}_0000\.nii\.gz")
    for identifier, label in labels.items():
        near = [path for path in images if path.name == f"{identifier}{CHANNEL}" and near_by(path, label)]
        image = by_identifier(near, CHANNEL).get(identifier, label.parent.with_name("images") / f"{identifier}{CHANNEL}")
        yield Case(identifier, [image], label, test=True)


def near_by(image: Path, label: Path) -> bool:
    """Whether two files lie in one folder, or in folders beside each other."""
    return image.parent == label.parent or image.parent.parent == label.parent.parent


def by_identifier(files: Iterable[Path], ending: str) -> dict[str, Path]:
    """Files by their name without the ending.

    Raises:
        ConversionError: Two files have the same name.
    """
    found: dict[str, Path] = {}
    for path in files:
        identifier = path.name.removesuffix(ending)
        if identifier in found:
            raise ConversionError(f"{found[identifier]} and {path} are the same file of {identifier}: take one away.")
        found[identifier] = path
    return found


def unlabeled_cases(files: Iterable[Path]) -> list[Case]:
    """Cases called Case_00001 and so on."""
    return [Case(identifier, [path]) for identifier, path in by_identifier(files, CHANNEL).items()]


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More cases: at any depth if they are called as in the challenge, else image files in the folder itself."""
    return of_one_kind(unlabeled_cases(find_files(folder, UNLABELED)), folder)


if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled="all", labeled_help=LABELED_HELP)
    parser.add_argument(
        "--use-tuning-cases",
        action="store_true",
        help="take the challenge's tuning cases, if their labels are there, as test cases",
    )
    main(find, DATASET, parser, find_unlabeled=find_unlabeled)
