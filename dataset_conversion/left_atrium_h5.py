#!/usr/bin/env python
"""Left Atrium, as the semi-supervised literature shares it (UA-MT, Yu et al., MICCAI 2019).

SOURCE holds "2018LA_Seg_Training Set/<case>/mri_norm2.h5" with the arrays image (float32) and label (0 and 1), axes
x, y, z, and the lists train.list and test.list. The files keep no spacing: it is 0.625 mm in all directions. Images
stay as they are, z-scored and cropped. The first cases of train.list are the labelled ones, its other cases the
unlabelled ones, those of test.list the test cases.
"""

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from left_atrium import DATASET, LABELED_HELP, case_lists
from nnunet_caml.conversion import Case, ConversionError, argument_parser, main, read_h5

FOLDER, FILE = "2018LA_Seg_Training Set", "mri_norm2.h5"
SPACING_MM = (0.625, 0.625, 0.625)
DATASET_H5 = replace(
    DATASET,
    label_map=None,
    read_image=partial(read_h5, key="image", spacing_mm=SPACING_MM),
    read_label=partial(read_h5, key="label", spacing_mm=SPACING_MM),
)


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The cases of both lists."""
    if not (source / FOLDER).is_dir():
        raise ConversionError(f"{source} has no folder {FOLDER!r}: SOURCE should be the folder that holds it.")
    for identifier, test in case_lists(options.lists or source):
        path = source / FOLDER / identifier / FILE
        yield Case(identifier, [path], path, test)


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More cases: ``<case>/mri_norm2.h5``."""
    return [Case(path.parent.name, [path]) for path in sorted(folder.glob(f"*/{FILE}"))]


if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=8, labeled_help=LABELED_HELP, draws_test=False)
    parser.add_argument("--lists", type=Path, metavar="DIR", help="folder of train.list, test.list (default: SOURCE)")
    main(find, DATASET_H5, parser, find_unlabeled=find_unlabeled)
