#!/usr/bin/env python
"""BraTS 2017 to 2021, as the challenge hands it out: four MRI sequences, and regions of a brain tumour.

SOURCE holds <case>/<case>_t1.nii.gz, _t1ce, _t2, _flair and _seg (0, 1, 2 and 4; .nii works, too), at any depth, such as in
HGG and LGG. The labels become nnU-Net's regions whole tumour, tumour core and enhancing tumour.

The labelled cases are drawn at random. With --lists, they are the first ones of train.txt, its other cases are the unlabelled
ones and those of test.txt the test cases; for BraTS 2019, these lists (250 and 60 cases) come with SSL4MIS
(github.com/HiLab-git/SSL4MIS, folder data/BraTS2019). The 25 cases of its val.txt are left out.
"""

import re
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from nnunet_caml.conversion import Case, CaseLists, ConversionError, Dataset, argument_parser, find_files, main, outside

SEQUENCES = ("t1", "t1ce", "t2", "flair")
LABELED_HELP = (
    "how many cases keep their label, or 'all' (default: 25; the literature on BraTS 2019 has 25 and 50 of 250, 10 and 20 %%, "
    "in the order of SSL4MIS's train.txt)"
)
# what the label of BraTS20_Training_355 is called in the download of BraTS 2020
OLD_LABEL = r"W39_1998\.09\.19_Segm"
# the same lists are passed on with either ending
LISTS = CaseLists("SSL4MIS, github.com/HiLab-git/SSL4MIS, folder data/BraTS2019", endings=(".txt", ".list"))
DATASET = Dataset(
    name="BraTS",
    channel_names=["T1", "T1ce", "T2", "FLAIR"],
    labels={"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
    # oedema 2, necrosis and non-enhancing core 1, enhancing tumour 4: from the outside to the inside
    label_map={0: 0, 2: 1, 1: 2, 4: 3},
    further={"regions_class_order": [1, 2, 3]},
    reference="Brain Tumor Segmentation challenge, https://www.med.upenn.edu/cbica/brats2019",
)


def files_by_case(folder: Path, but: Path | None = None) -> dict[str, dict[str, Path]]:
    """For each case, its files by sequence, and its label as ``"seg"``; of no case in the folder ``but``."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in outside(find_files(folder, rf"(.+_({'|'.join(SEQUENCES)}|seg)|{OLD_LABEL})\.nii(\.gz)?"), but):
        stem = re.sub(r"\.nii(\.gz)?$", "", path.name)
        identifier, sequence = (path.parent.name, "seg") if re.fullmatch(OLD_LABEL, stem) else stem.rsplit("_", 1)
        if sequence in found[identifier]:
            raise ConversionError(
                f"{found[identifier][sequence]} and {path} are the same image of the case {identifier}: take one away."
            )
        found[identifier][sequence] = path
    if not found:
        raise ConversionError(
            f"{folder} holds no files such as CASE_flair.nii.gz and CASE_seg.nii.gz: it should be the folder of the "
            "unpacked download (BraTS 2017 to 2021)."
        )
    return found


def case(identifier: str, files: dict[str, Path], source: Path, test: bool = False) -> Case:
    """A case, with the place where a missing file should be."""
    beside = next(iter(files.values()), source / identifier / ".nii.gz")
    ending = ".nii" if beside.suffix == ".nii" else ".nii.gz"
    *images, label = (
        files.get(sequence, beside.with_name(f"{identifier}_{sequence}{ending}")) for sequence in (*SEQUENCES, "seg")
    )
    return Case(identifier, images, label, test)


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """All cases, or those of the lists."""
    found = files_by_case(source, options.unlabeled_from)
    if options.lists is None:
        for identifier in sorted(found):
            yield case(identifier, found[identifier], source)
    else:
        if options.test:
            raise ConversionError("--test draws test cases at random, but --lists names them: give one of the two.")
        for identifier, name in LISTS.read(options.lists):
            yield case(identifier, found.get(identifier, {}), source, test=name == "test")


def dataset(source: Path, options: Namespace) -> Dataset:
    """The data set, with labelled cases in the order of the list if there is one."""
    return replace(DATASET, ordered=options.lists is not None)


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More cases, such as the challenge's validation cases."""
    return [case(identifier, files, folder) for identifier, files in sorted(files_by_case(folder).items())]


if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=25, labeled_help=LABELED_HELP)
    LISTS.add_option(parser, default="drawn at random")
    main(find, dataset, parser, find_unlabeled=find_unlabeled)
