#!/usr/bin/env python
"""Left Atrium (2018 Atrial Segmentation Challenge), as the challenge hands it out.

SOURCE holds <case>/lgemri.nrrd and <case>/laendo.nrrd (0 and 255), directly or in folders such as "Training Set",
and the lists train.list and test.list of the semi-supervised literature. The first cases of train.list are the labelled
ones, its other cases the unlabelled ones, those of test.list the test cases.
"""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from nnunet_caml.conversion import (
    Case,
    CaseLists,
    ConversionError,
    Dataset,
    argument_parser,
    find_files,
    main,
    of_one_kind,
)

LABELED_HELP = (
    "how many cases keep their label, in the order of train.list (default: 8, a tenth; the literature has 4, 8 and 16: "
    "8 and 16 in UA-MT, Yu et al., MICCAI 2019; 4, 8 and 16 in CAML, Gao et al., arXiv:2307.06312)"
)
LISTS = CaseLists("UA-MT, github.com/yulequan/UA-MT, folder data")
DATASET = Dataset(
    name="LeftAtrium",
    channel_names=["MRI"],
    labels={"background": 0, "left atrium": 1},
    label_map={0: 0, 255: 1},
    ordered=True,
    reference="2018 Atrial Segmentation Challenge, http://atriaseg2018.cardiacatlas.org",
)


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The cases of both lists."""
    folders: dict[str, Path] = {}
    for path in find_files(source, r"lgemri\.nrrd"):
        other = folders.setdefault(path.parent.name, path.parent)
        if other != path.parent:
            raise ConversionError(f"{path.parent.name} is there twice, in {other} and in {path.parent}: take one away.")
    for identifier, name in LISTS.read(options.lists or source):
        folder = folders.get(identifier, source / identifier)
        yield Case(identifier, [folder / "lgemri.nrrd"], folder / "laendo.nrrd", test=name == "test")


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More cases: folders as in SOURCE, or image files."""
    found = [Case(path.parent.name, [path]) for path in sorted(folder.glob("*/lgemri.nrrd"))]
    return of_one_kind(found, folder)


if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=8, labeled_help=LABELED_HELP, draws_test=False)
    LISTS.add_option(parser)
    main(find, DATASET, parser, find_unlabeled=find_unlabeled)
