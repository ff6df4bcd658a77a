#!/usr/bin/env python
"""NIH Pancreas-CT, as the semi-supervised literature shares it (MC-Net, Wu et al., github.com/ycwu1997/MC-Net).

SOURCE holds Pancreas_h5/image0001_norm.h5, ... with the arrays image (float32) and label (0 and 1), axes x, y, z, and the
lists train.list (62 cases) and test.list (20). The files keep no spacing: they were resampled to 1 mm in all directions.
Images stay as they are: cut to -125 to 275 HU, z-scored and cropped around the pancreas. The first cases of train.list
are the labelled ones, its other cases the unlabelled ones, those of test.list the test cases.
"""

from argparse import Namespace
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from nnunet_caml.conversion import Case, ConversionError, Dataset, argument_parser, main, read_h5, read_list

FOLDER, ENDING = "Pancreas_h5", "_norm.h5"
LABELED_HELP = (
    "how many cases keep their label, in the order of train.list (default: 12, about 20 %%; the literature has 6 and 12, "
    "about 10 and 20 %% of 62)"
)
SPACING_MM = (1.0, 1.0, 1.0)
DATASET = Dataset(
    name="Pancreas",
    channel_names=["windowed CT"],  # not "CT": nnU-Net would take the z-scores for Hounsfield units
    labels={"background": 0, "pancreas": 1},
    read_image=partial(read_h5, key="image", spacing_mm=SPACING_MM),
    read_label=partial(read_h5, key="label", spacing_mm=SPACING_MM),
    ordered=True,
    licence="CC BY 3.0",
    reference="NIH Pancreas-CT, The Cancer Imaging Archive, https://doi.org/10.7937/K9/TCIA.2016.tNB1kqBU",
)


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The cases of both lists."""
    if not (source / FOLDER).is_dir():
        raise ConversionError(f"{source} has no folder {FOLDER!r}: SOURCE should be the folder that holds it.")
    lists = options.lists or source
    for name, test in (("train.list", False), ("test.list", True)):
        if not (lists / name).is_file():
            raise ConversionError(
                f"{lists / name} does not exist: put the lists of the literature beside {FOLDER}, or say with --lists where "
                "they are."
            )
        for identifier in read_list(lists / name):
            path = source / FOLDER / f"{identifier}{ENDING}"
            yield Case(identifier, [path], path, test)


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More cases: ``*_norm.h5``."""
    return [Case(path.name.removesuffix(ENDING), [path]) for path in sorted(folder.glob(f"[!.]*{ENDING}"))]


if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=12, labeled_help=LABELED_HELP, draws_test=False)
    parser.add_argument("--lists", type=Path, metavar="DIR", help="folder of train.list, test.list (default: SOURCE)")
    main(find, DATASET, parser, find_unlabeled=find_unlabeled)
