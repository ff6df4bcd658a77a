#!/usr/bin/env python
"""BraTS 2019, as the semi-supervised literature shares it (SSL4MIS, github.com/HiLab-git/SSL4MIS, folder data/BraTS2019).

SOURCE holds data/BraTS19_*.h5 with the arrays image (FLAIR, float32) and label (whole tumour, 0 and 1), and the lists
train.txt (250 cases), val.txt (25) and test.txt (60). The files keep no spacing: it is 1 mm in all directions. Images stay
as they are, z-scored and cropped. The first cases of train.txt are the labelled ones, its other cases the unlabelled ones,
those of test.txt the test cases. Those of val.txt, on which the literature chooses checkpoints, are left out.
"""

from argparse import Namespace
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from brats import DATASET as OFFICIAL
from brats import case_lists
from nnunet_caml.conversion import Case, ConversionError, Dataset, argument_parser, main, read_h5

FOLDER, ENDING = "data", ".h5"
LABELED_HELP = (
    "how many cases keep their label, in the order of train.txt (default: 25; the literature on BraTS 2019 has 25 and 50 "
    "of 250, 10 and 20 %%)"
)
SPACING_MM = (1.0, 1.0, 1.0)
DATASET = Dataset(
    name="BraTS19",
    channel_names=["FLAIR"],
    labels={"background": 0, "whole tumor": 1},
    # the axes come from a program whose arrays are z, y, x; with equal spacings, their order changes no distance
    read_image=partial(read_h5, key="image", spacing_mm=SPACING_MM, axes="zyx"),
    read_label=partial(read_h5, key="label", spacing_mm=SPACING_MM, axes="zyx"),
    ordered=True,
    reference=OFFICIAL.reference,
)


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The cases of both lists."""
    if not (source / FOLDER).is_dir():
        raise ConversionError(f"{source} has no folder {FOLDER!r} of .h5 files: SOURCE should be the folder that holds it.")
    for identifier, test in case_lists(options.lists or source):
        path = source / FOLDER / f"{identifier}{ENDING}"
        yield Case(identifier, [path], path, test)


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More cases: ``*.h5``."""
    return [Case(path.name.removesuffix(ENDING), [path]) for path in sorted(folder.glob(f"[!.]*{ENDING}"))]


if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=25, labeled_help=LABELED_HELP, draws_test=False)
    parser.add_argument("--lists", type=Path, metavar="DIR", help="folder of train.txt and test.txt (default: SOURCE)")
    main(find, DATASET, parser, find_unlabeled=find_unlabeled)
