#!/usr/bin/env python
"""Draws Dice over the number of labelled cases from the figures that are kept in benchmarks/results; trains nothing."""

import argparse
import os
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.backend_bases import FigureCanvasBase

from run_study import STUDIES, select
from study import figures, report
from study.commands import Measurement, Workspace
from study.description import Study, StudyError, read_study
from study.kept import KEPT

MEASUREMENTS = [Measurement(*how) for how in product((False, True), (None, True, False), (False, True))]
#: what the study is called then, where it was run on a GPU, and where the folder has second trainings of it
GPU, AGAIN = "_gpu", "_again"


def panel(name: str, names: list[str] | None = None) -> figures.Means:
    """Dice of the runs kept in one folder, as users get them: not of the auxiliary network.

    Args:
        name: Of the folder.
        names: Of arms; all, if not given. Those that the study does not have are left out.

    Raises:
        StudyError: As :func:`study_of`, no arm of the study is named, or none of the figures is of such an arm.
    """
    study, measurement = study_of(name)
    here = [arm.name for arm in study.arms if arm.name in (names or [])]
    with TemporaryDirectory() as folder:
        work = Workspace(Path(folder), Path(folder), measurement=measurement)
        results = report.collect(study, work, KEPT, select(study, here or names))
    means = figures.without_auxiliary(study, report.case_means(results))
    if not means:
        raise StudyError(f"{KEPT / name} has no figures of {', '.join(names or ['any arm'])}.")
    return means


def study_of(name: str) -> tuple[Study, Measurement]:
    """The study of a folder of kept figures, and what they are figures of.

    Raises:
        StudyError: There is no such folder, or no file of its study.
    """
    folders = sorted(folder.name for folder in KEPT.glob("*") if folder.is_dir())
    if name not in folders:
        there = ", ".join(folder for folder in folders if _described(folder))
        raise StudyError(f"{name} is no folder of kept figures: there are {there}.")
    described = _described(name)
    if described is None:
        missing = min((study for study, _ in _readings(name)), key=len).removesuffix(AGAIN).removesuffix(GPU)
        raise StudyError(f"{name}: the file of its study is missing; put {missing}.json into {STUDIES}.")
    file, study, measurement = described
    return replace(read_study(file), name=study), measurement


def _readings(name: str) -> list[tuple[str, Measurement]]:
    """What the name of a folder may say: that of the study, and what its models are measured on."""
    return [(name.removesuffix(how.ending), how) for how in MEASUREMENTS if name.endswith(how.ending)]


def _described(name: str) -> tuple[Path, str, Measurement] | None:
    """The file of a folder's study, and what the folder's name says, if there is such a file."""
    for study, how in _readings(name):
        original = study.removesuffix(AGAIN)
        for file in (STUDIES / f"{one}.json" for one in (study, original, original.removesuffix(GPU))):
            if file.is_file():
                return file, study, how
    return None


def check_output(picture: Path) -> None:
    """Refuses a picture that cannot be written, before the work of drawing it.

    Raises:
        StudyError: It cannot.
    """
    if picture.is_dir():
        raise StudyError(f"-o {picture}: is a folder; name a file in it.")
    if not picture.parent.is_dir():
        raise StudyError(f"-o {picture}: there is no folder {picture.parent}; make it, or name another one.")
    if not os.access(picture if picture.exists() else picture.parent, os.W_OK):
        raise StudyError(f"-o {picture}: may not be written; name a picture in another folder.")
    known = FigureCanvasBase.get_supported_filetypes()
    if picture.suffix and picture.suffix[1:].lower() not in known:
        endings = ", ".join(sorted(known))
        raise StudyError(f"-o {picture}: pictures end in {endings}, not in {picture.suffix}; name another one.")


def main() -> int:
    """Parses the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of benchmarks/results, each a panel")
    parser.add_argument("--titles", nargs="+", metavar="TITLE", help="of the panels (default: the folders' names)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="draw these arms only")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture")
    options = parser.parse_args()
    titles = options.titles or options.folders
    if len(titles) != len(options.folders):
        parser.error(f"--titles has {len(titles)} titles for {len(options.folders)} folders")
    try:
        check_output(options.output)
        panels = [(title, panel(folder, options.arms)) for title, folder in zip(titles, options.folders, strict=True)]
        drawn = {arm for _, means in panels for arm, *_ in means}
        if absent := [arm for arm in options.arms or [] if arm not in drawn]:
            raise StudyError(f"--arms {absent[0]}: none of these folders has figures of it.")
    except StudyError as error:
        print(f"learning_curves.py: {error}", file=sys.stderr)
        return 1
    figures.learning_curves(panels, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
