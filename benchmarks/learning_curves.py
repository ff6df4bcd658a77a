#!/usr/bin/env python
"""Draws Dice over the number of labelled cases from the figures that are kept in benchmarks/results; trains nothing."""

import argparse
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from run_study import STUDIES, select
from study import figures, report
from study.commands import Measurement, Workspace
from study.description import Study, StudyError, read_study
from study.kept import KEPT

MEASUREMENTS = [Measurement(*how) for how in product((False, True), (None, True, False), (False, True))]
#: what the study is called then, where it was run on a GPU
GPU = "_gpu"


def panel(name: str, names: list[str] | None = None) -> figures.Means:
    """Dice of the runs kept in one folder.

    Args:
        name: Of the folder.
        names: Of arms; all, if not given. Those that the study does not have are left out.

    Raises:
        StudyError: There is no such folder, no arm of its study is named, or none of its figures is of such an arm.
    """
    study, measurement = study_of(name)
    here = [arm.name for arm in study.arms if arm.name in (names or [])]
    with TemporaryDirectory() as folder:
        work = Workspace(Path(folder), Path(folder), measurement=measurement)
        means = report.case_means(report.collect(study, work, KEPT, select(study, here or names)))
    if not means:
        raise StudyError(f"{KEPT / name} has no figures of {', '.join(names or ['any arm'])}.")
    return means


def study_of(name: str) -> tuple[Study, Measurement]:
    """The study of a folder of kept figures, and what they are figures of.

    Raises:
        StudyError: There is no such folder.
    """
    names = [(name.removesuffix(how.ending), how) for how in MEASUREMENTS if name.endswith(how.ending)]
    files = [(STUDIES / f"{study.removesuffix(GPU)}.json", study, how) for study, how in names]
    known = [one for one in files if one[0].is_file() and (KEPT / name).is_dir()]
    if not known:
        raise StudyError(f"{name} is no folder of kept figures: there are {', '.join(sorted(f.name for f in KEPT.iterdir()))}.")
    file, study, measurement = known[0]
    return replace(read_study(file), name=study), measurement


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
        panels = {title: panel(folder, options.arms) for title, folder in zip(titles, options.folders, strict=True)}
        drawn = {arm for means in panels.values() for arm, *_ in means}
        if absent := [arm for arm in options.arms or [] if arm not in drawn]:
            raise StudyError(f"--arms {absent[0]}: none of these folders has figures of it.")
    except StudyError as error:
        print(f"learning_curves.py: {error}", file=sys.stderr)
        return 1
    figures.learning_curves(panels, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
