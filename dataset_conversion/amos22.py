#!/usr/bin/env python
"""AMOS 2022: 15 abdominal organs in CT and MRI.

SOURCE holds imagesTr, labelsTr, imagesVa and labelsVa with amos_0001.nii.gz and so on (labels 0 to 15), directly or in a
folder amos22. --modality chooses CT (numbers up to 500), MRI (above) or both. The cases of imagesTr that keep
their label are drawn at random, the others are unlabelled; those of imagesVa, whose labels are public, are the test cases.
The challenge's own test images have no public labels and are left out unless --use-test-images makes them unlabelled cases.

The further unlabelled scans come in ZIP archives, CT with numbers from 5000 and MRI from 7000. Unpack them into any folders:
in SOURCE, or elsewhere for --unlabeled-from. The names of the folders do not matter.

With --link, unlabelled files are neither copied nor linked: dataset.json names them where they lie.
"""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from flare22 import by_identifier
from nnunet_caml.conversion import Case, ConversionError, Dataset, argument_parser, find_files, main, of_one_kind, outside

ENDING = ".nii.gz"
NAME = r"amos_\d{4}\.nii\.gz"
PARTS = ("imagesTr", "labelsTr", "imagesVa", "labelsVa", "imagesTs", "labelsTs")
ORGANS = (
    *("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *("inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder"),
    "prostate or uterus",
)
DATASETS = {
    # "CT" makes nnU-Net normalise Hounsfield units, any other name each image by itself
    key: Dataset(
        name=name,
        channel_names=[channel],
        labels={"background": 0, **{organ: value for value, organ in enumerate(ORGANS, 1)}},
        in_place=True,
        licence="unclear: CC BY 4.0 (Zenodo, as others say) or CC BY-NC (OpenReview); ask the authors",
        reference="AMOS 2022, https://doi.org/10.5281/zenodo.7262581",
    )
    for key, name, channel in (
        ("ct", "AMOS22CT", "CT"),
        ("mr", "AMOS22MR", "MRI"),
        ("both", "AMOS22", "CT or MRI"),
    )
}


def modality(identifier: str) -> str:
    """``"ct"`` or ``"mr"`` for a name such as ``amos_0001``."""
    number = int(identifier[-4:])
    return "mr" if 500 < number < 5000 or number >= 7000 else "ct"


def is_further(path: Path) -> bool:
    """Whether a scan is one of the further unlabelled ones, whatever folder it lies in."""
    return int(path.name[5:9]) >= 5000


def wanted(identifier: str, options: Namespace) -> bool:
    """Whether a case is of the modality asked for."""
    return options.modality in ("both", modality(identifier))


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """Training cases, validation cases as test cases, and the unlabelled cases in SOURCE."""
    files = find_files(source, NAME)
    parts = {
        name: by_identifier((path for path in files if path.parent.name == name and not is_further(path)), ENDING)
        for name in PARTS
    }
    if not parts["imagesTr"]:
        raise ConversionError(f"{source} has no folder imagesTr with files such as amos_0001.nii.gz: unpack amos22.zip there.")
    root = next(iter(parts["imagesTr"].values())).parent.parent
    for part, test in (("Tr", False), ("Va", True)):
        images, labels = parts[f"images{part}"], parts[f"labels{part}"]
        for identifier in sorted(images.keys() | labels.keys()):
            if wanted(identifier, options):
                yield Case(
                    identifier,
                    [images.get(identifier, root / f"images{part}" / f"{identifier}{ENDING}")],
                    labels.get(identifier, root / f"labels{part}" / f"{identifier}{ENDING}"),
                    test,
                )
    beside = outside(files, options.unlabeled_from)
    if mistaken := next((path for path in beside if not is_further(path) and path.parent.name not in PARTS), None):
        raise ConversionError(
            f"{mistaken} has the number of a case of the challenge, and is not where AMOS has it ({', '.join(PARTS)}): take it "
            "away, as it may be a label or a test image."
        )
    more = [path for path in beside if is_further(path)]
    if options.use_test_images:
        if not parts["imagesTs"]:
            raise ConversionError(f"{root / 'imagesTs'} holds no files such as amos_0001.nii.gz: leave out --use-test-images.")
        more += parts["imagesTs"].values()
    yield from unlabeled_cases(more, options)


def unlabeled_cases(files: Iterable[Path], options: Namespace) -> list[Case]:
    """Cases of the modality asked for."""
    found = by_identifier(files, ENDING)
    return [Case(identifier, [found[identifier]]) for identifier in sorted(found) if wanted(identifier, options)]


def find_unlabeled(folder: Path, options: Namespace) -> Iterable[Case]:
    """More cases: at any depth if they are called as in AMOS, else image files in the folder itself."""
    files = find_files(folder, NAME)
    return of_one_kind(unlabeled_cases(files, options), folder, files)


def dataset(source: Path, options: Namespace) -> Dataset:
    """The data set of the modality asked for."""
    return DATASETS[options.modality]


if __name__ == "__main__":
    parser = argument_parser(__doc__, draws_test=False)
    parser.add_argument("--modality", choices=sorted(DATASETS), required=True, help="scans to take")
    parser.add_argument(
        "--use-test-images",
        action="store_true",
        help="take imagesTs as unlabelled cases; results on these images are then transductive",
    )
    main(find, dataset, parser, find_unlabeled=lambda folder: find_unlabeled(folder, parser.parse_args()))
