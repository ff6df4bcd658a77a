#!/usr/bin/env python
"""Draws Dice over the time of training, of plain nnU-Net and of CAML, from the figures that are kept in benchmarks/results.

Time is counted in iterations of plain nnU-Net, because seconds depend on the machine and on what else it did.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from learning_curves import check_output, panel, study_of
from nnunet_caml.trainer import nnUNetTrainerCAML
from nnunet_caml.variants import nnUNetTrainerCAML_lateStart
from study import figures
from study.description import Arm, StudyError


def _cost(trainer: type[nnUNetTrainerCAML]) -> float:
    """How many iterations of plain nnU-Net take as long as one of CAML, in the mean of a training.

    As measured in the undisturbed epochs of hippocampus_long on two CPU cores, a training each: 8.1 s with labelled patches
    alone, 16.3 s with unlabelled ones, where nnU-Net takes 4.1.
    """
    alone = trainer.rampup_start_fraction
    return (alone * 8.1 + (1 - alone) * 16.3) / 4.1


#: trainer: curve, and the cost of one of its iterations
CURVES = {
    "nnUNetTrainer": ("plain nnU-Net", 1.0),
    "nnUNetTrainerCAML": ("CAML", _cost(nnUNetTrainerCAML)),
    "nnUNetTrainerCAML_lateStart": ("CAML, start at 0.4", _cost(nnUNetTrainerCAML_lateStart)),
}
ALL_LABELS = "plain nnU-Net, all labels"


def curve_of(arm: Arm, labeled: int | None) -> tuple[str, float] | None:
    """Which curve an arm is a point of, and the cost of its iterations; ``None`` for what is no training of the defaults.

    Args:
        arm: Of a study.
        labeled: Number of labelled cases, on which an arm's settings may depend; ``None`` for all.
    """
    settings = arm.attributes or arm.by_labeled.get(str(labeled))
    if settings or arm.pseudo_labels_from or arm.trainer not in CURVES:
        return None
    name, cost = CURVES[arm.trainer]
    return (ALL_LABELS if arm.all_labels else name), cost


def points(folders: list[str], labeled: int, subsets: list[int] | None = None) -> dict[str, dict[float, list[float]]]:
    """Mean Dice of every run by curve and time, in thousands of iterations of plain nnU-Net; of some labelled subsets or all.

    Times that were tried with fewer labelled subsets than others of the same curve are left out: subsets differ by more than
    times do.

    Raises:
        StudyError: As :func:`learning_curves.panel`, the folders are not comparable, or there is nothing to draw.
    """
    folders = list(dict.fromkeys(folders))
    check_comparable(folders)
    names = [*(name for name, _ in CURVES.values()), ALL_LABELS]
    found: dict[str, dict[float, list[float]]] = {name: defaultdict(list) for name in names}
    trained: dict[tuple, str] = {}  # where each training is from
    measured: dict[frozenset[str], str] = {}  # and each set of cases
    for folder in folders:
        study, *_ = study_of(folder)
        arms = {arm.name: arm for arm in study.arms}
        for (name, number, subset, seed), cases in panel(folder).items():
            asked = number is None or (number == labeled and (subsets is None or subset in subsets))
            if not asked or (curve := curve_of(arms[name], number)) is None:
                continue
            time = curve[1] * (arms[name].iterations or study.iterations) / 1000
            found[curve[0]][time].append(float(np.nanmean(list(cases.values()))))
            if (other := trained.setdefault((curve, time, subset, seed), folder)) != folder:
                which = f"{name}, {'all' if number is None else number} labelled cases, subset {subset}, seed {seed}"
                raise StudyError(f"{other} and {folder} both have a training of {which}: leave one of them out.")
            measured.setdefault(frozenset(cases), where := f"{folder} ({name})")
            if len(measured) > 1:
                raise StudyError(f"{where} has other cases than {next(iter(measured.values()))}: leave one of them out.")
    if not any(name != ALL_LABELS and times for name, times in found.items()):
        raise StudyError(f"{', '.join(folders)}: no figures of nnU-Net or CAML with {labeled} labelled cases.")
    whole = {name: max(map(len, times.values()), default=0) for name, times in found.items()}
    return {name: {t: r for t, r in times.items() if len(r) == whole[name]} for name, times in found.items() if times}


def check_comparable(folders: list[str]) -> None:
    """Nothing but the arms and the length of their trainings may differ between folders.

    Raises:
        StudyError: Something else does.
    """
    first, *others = folders
    for other in others:
        for what, value in _conditions(other).items():
            if value != _conditions(first)[what]:
                raise StudyError(f"{first} and {other} cannot be compared: their {what}; name folders of one kind.")


def _conditions(folder: str) -> dict[str, object]:
    """What the figures of a folder depend on beside the arms, by the words for a difference in it."""
    study, how = study_of(folder)
    return {
        "data differ": study.data,
        "configurations differ": study.configuration,
        "models are measured on other cases, development or test cases": how.test,
        "predictions differ, mirrored or not": study.test_time_augmentation if how.mirrored is None else how.mirrored,
        "predictions differ, all components or the largest": how.largest,
    }


def main() -> int:
    """Parses the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of benchmarks/results, of the same cases")
    parser.add_argument(
        "--labeled", nargs="+", type=int, required=True, metavar="N", help="numbers of labelled cases, a panel each"
    )
    parser.add_argument("--subsets", nargs="+", type=int, metavar="SEED", help="with these labelled subsets only")
    parser.add_argument("--title", default="", help="of the picture")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture")
    options = parser.parse_args()
    try:
        check_output(options.output)
        panels = {f"{n} labelled cases": points(options.folders, n, options.subsets) for n in options.labeled}
    except StudyError as error:
        print(f"training_time.py: {error}", file=sys.stderr)
        return 1
    figures.training_time(panels, options.title, options.output)
    for panel_title, curves in panels.items():
        for name, times in curves.items():
            said = ", ".join(f"{time:.1f}: {np.mean(dice):.3f} ({len(dice)})" for time, dice in sorted(times.items()))
            print(f"{panel_title}, {name}: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
