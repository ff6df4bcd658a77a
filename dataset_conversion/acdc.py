#!/usr/bin/env python
"""ACDC (Automated Cardiac Diagnosis Challenge, 2017), as the challenge hands it out.

SOURCE holds training/patientXXX/patientXXX_frameYY.nii.gz with ..._frameYY_gt.nii.gz, two frames a patient, and the
whole heart beat in patientXXX_4d.nii.gz. The split is that of SSL4MIS (github.com/HiLab-git/SSL4MIS, data/ACDC), which
most semi-supervised work uses: of the 100 patients in training, 70 are for training, of which the first ones of its
train.list keep their labels, 10 are for validation (left out unless --use-validation-images makes them unlabelled
cases) and 20 are test cases. A patient's frames are never divided. --challenge-split has the challenge's own split
instead: labelled patients drawn at random from all of training, and the patients in testing as test cases.
"""

import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import SimpleITK as sitk

from nnunet_caml.conversion import Case, ConversionError, Dataset, argument_parser, main

ENDING = ".nii.gz"
LABELED_HELP = (
    "how many patients keep the labels of their two frames (default: 7, a tenth; the literature has 3, 7 and 14, which "
    "are 68, 136 and 256 slices), in the order of SSL4MIS's train.list; at random with --draw and with --challenge-split"
)
DATASET = Dataset(
    name="ACDC",
    channel_names=["cineMRI"],
    labels={"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3},
    reference="Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2018, doi 10.1109/TMI.2018.2837502",
)
# patients in the order of SSL4MIS's train.list, val.list and test.list
TRAINING = """
099 038 050 100 058 021 049 020 072 040 060 089 004 056 098 096 031 018 094 047 048 055 097 074 043 041 063 037 095 054
026 088 032 069 006 071 012 073 061 017 025 010 057 029 051 005 036 046 062 034 076 092 070 077 067 003 091 016 014 044
042 090 053 027 035 086 023 009 079 015
"""
VALIDATION = "028 085 082 087 019 030 078 045 002 039"
TEST = "011 013 084 033 093 022 068 024 083 081 080 001 007 066 008 065 075 064 059 052"


def dataset(source: Path, options: Namespace) -> Dataset:
    """With the literature's order, or drawn at random."""
    return replace(DATASET, ordered=not (options.draw or options.challenge_split))


def patient_folders(folder: Path) -> dict[str, Path]:
    """Every ``patientXXX`` in the folder."""
    found = {path.name: path for path in sorted(folder.glob("patient[0-9][0-9][0-9]")) if path.is_dir()}
    if not found:
        raise ConversionError(
            f"{folder} holds no folder patientXXX: SOURCE should be the folder with training/patient001 and so on."
        )
    return found


def annotated_frames(folder: Path) -> list[Path]:
    """The images of a patient's single frames; a name to complain of where there is none."""
    files = folder.iterdir() if folder.is_dir() else ()
    names = (re.fullmatch(rf"({folder.name}_frame\d+)(_gt)?\.nii\.gz", path.name) for path in files)
    found = {match[1] for match in names if match}  # a label without its image is a frame that lacks one
    info = folder / "Info.cfg"  # names both, of which one may be lost
    said = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    for number in re.findall(r"^E[DS]:\s*(\d+)", said, re.MULTILINE):
        found.add(f"{folder.name}_frame{int(number):02d}")
    return [folder / f"{name}{ENDING}" for name in sorted(found) or [f"{folder.name}_frame01"]]


def frames(folder: Path, test: bool = False, labels: bool = True) -> Iterable[Case]:
    """The annotated frames of a patient."""
    for image in annotated_frames(folder):
        identifier = image.name.removesuffix(ENDING)
        label = image.with_name(f"{identifier}_gt{ENDING}")
        yield Case(identifier, [image], label if labels else None, test=test, patient=folder.name)


def cine_frames(folder: Path) -> Iterable[Case]:
    """The frames of a patient's sequence that nobody annotated."""
    path = folder / f"{folder.name}_4d{ENDING}"
    annotated = {int(image.name.removesuffix(ENDING).rpartition("frame")[2]) for image in annotated_frames(folder)}
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
        size = header.GetSize()
    except RuntimeError:
        size = ()
    if len(size) != 4:  # a case that cannot be read, so that the complaint and --skip-broken are as for any other
        yield Case(f"{folder.name}_4d", [path], patient=folder.name, frame=0)
        return
    for number in range(1, size[3] + 1):  # the files count frames from 1
        if number not in annotated:
            yield Case(f"{folder.name}_frame{number:02d}", [path], patient=folder.name, frame=number - 1)


def roles(source: Path, options: Namespace) -> Mapping[Path, str]:
    """What every patient is for, in the order in which labels are kept."""
    training = patient_folders(source / "training")
    if options.challenge_split:
        if options.use_validation_images:
            raise ConversionError("--use-validation-images says nothing with --challenge-split: leave one of them out.")
        testing = patient_folders(source / "testing")
        return {**dict.fromkeys(training.values(), "training"), **dict.fromkeys(testing.values(), "test")}
    listed = {"training": TRAINING, "validation": VALIDATION, "test": TEST}
    known = {f"patient{number}": role for role, numbers in listed.items() for number in numbers.split()}
    for name, folder in training.items():
        if name not in known:
            raise ConversionError(f"{folder} is none of the 100 patients of the literature's split: take it away.")
    # a patient that is not there is broken, not forgotten: the split would be another one
    return {source / "training" / name: role for name, role in known.items()}


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The annotated frames, and with ``--use-cine-frames`` the other ones of all patients that are no test cases."""
    for folder, role in roles(source, options).items():
        if role == "validation" and not options.use_validation_images:
            continue
        # the labels of the challenge's test patients were published years later: old downloads have none at all
        has_labels = role != "test" or not options.challenge_split or any((source / "testing").glob(f"*/*_gt{ENDING}"))
        yield from frames(folder, test=role == "test", labels=role != "validation" and has_labels)
        if options.use_cine_frames and role != "test":
            yield from cine_frames(folder)


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More patients: folders as in training."""
    return [case for path in patient_folders(folder).values() for case in frames(path, labels=False)]


if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=7, labeled_help=LABELED_HELP, draws_test=False)
    parser.add_argument(
        "--use-cine-frames",
        action="store_true",
        help="take the frames without label of the 4-D sequences as unlabelled cases, but none of a test patient",
    )
    parser.add_argument("--use-validation-images", action="store_true", help="take those 10 patients as unlabelled cases")
    parser.add_argument("--draw", action="store_true", help="draw the labelled patients at random (--seed)")
    parser.add_argument("--challenge-split", action="store_true", help="take the challenge's test patients")
    main(find, dataset, parser, find_unlabeled=find_unlabeled)
