#!/usr/bin/env python
"""PROMISE12 (Prostate MR Image Segmentation, 2012), as the challenge hands it out.

SOURCE holds CaseNN.mhd with CaseNN_segmentation.mhd and their .raw files, anywhere below it. The split is that of ABD
(Chi et al., CVPR 2024, github.com/chy-upc/ABD, data/promise12): of the 50 training cases, 00 to 34 are for training, 35
to 39 for validation (left out unless --use-validation-images makes them unlabelled cases) and 40 to 49 are the test
cases. ABD labels the first slices of its training set, the last of which ends within a case, so the labelled cases are
drawn at random (--seed) instead.

The challenge's own test cases, in folders with "test" in their name, have the same names, and their labels are not read;
they are left out unless --use-test-images makes them unlabelled cases Test_CaseNN, or LiveTest_CaseNN where a folder has
"live" in its name as well.
"""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from nnunet_caml.conversion import Case, ConversionError, Dataset, argument_parser, find_files, main

LABELED_HELP = (
    "how many of the 35 training cases keep their label, drawn at random (default: 7, a fifth, as in the code of ABD), or 'all'"
)
DATASET = Dataset(
    name="PROMISE12",
    channel_names=["T2MRI"],
    labels={"background": 0, "prostate": 1},
    reference="Litjens et al., Medical Image Analysis 18(2), 2014, https://promise12.grand-challenge.org",
)
TRAINING, VALIDATION, TEST = range(35), range(35, 40), range(40, 50)


def test_name(image: Path, source: Path) -> str:
    """What a test case is called: both parts of the challenge's test cases count from Case00."""
    folders = image.relative_to(source).parts[:-1]
    return f"{'LiveTest' if any('live' in part.lower() for part in folders) else 'Test'}_{image.stem}"


def images_below(source: Path) -> tuple[list[Path], list[Path]]:
    """The images of the challenge's training cases and of its test cases."""
    found = find_files(source, r"Case\d\d\.mhd")
    if not found:
        raise ConversionError(f"{source} holds no file CaseNN.mhd: SOURCE should be the folder of the unpacked downloads.")
    test = [path for path in found if any("test" in part.lower() for part in path.relative_to(source).parts[:-1])]
    return [path for path in found if path not in test], test


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The challenge's training cases, and with ``--use-test-images`` its test cases."""
    images, test_images = images_below(source)
    numbers = {int(path.stem[len("Case") :]) for path in images}
    # what is not there is broken, not forgotten: the split would be another one
    absent = [source / f"Case{number:02d}.mhd" for number in range(50) if number not in numbers]
    for image in sorted([*images, *absent], key=lambda path: path.name):
        number = int(image.stem[len("Case") :])
        if number not in (*TRAINING, *VALIDATION, *TEST):
            raise ConversionError(f"{image} is none of the cases 00 to 49 of the literature's split: take it away.")
        label = image.with_name(f"{image.stem}_segmentation.mhd")
        if number not in VALIDATION:
            yield Case(image.stem, [image], label, test=number in TEST)
        elif options.use_validation_images:
            yield Case(image.stem, [image])
    if options.use_test_images:
        if not test_images:
            raise ConversionError(
                f"{source} holds no CaseNN.mhd in a folder with 'test' in its name: leave out --use-test-images."
            )
        for image in test_images:
            yield Case(test_name(image, source), [image])


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More cases: ``*.mhd`` other than segmentations, in the folder itself."""
    paths = [path for path in sorted(folder.glob("[!.]*.mhd")) if not path.stem.endswith("_segmentation")]
    return [Case(f"Unlabeled_{path.stem}", [path]) for path in paths]


if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=7, labeled_help=LABELED_HELP, draws_test=False)
    parser.add_argument("--use-validation-images", action="store_true", help="take cases 35 to 39 as unlabelled cases")
    parser.add_argument(
        "--use-test-images",
        action="store_true",
        help="take the challenge's test cases as unlabelled cases; results on these images are then transductive",
    )
    main(find, DATASET, parser, find_unlabeled=find_unlabeled)
