#!/usr/bin/env python
"""Compares two arms case by case, of one folder of kept figures or of two, such as trainings of different length.

What `run_study.py --against` does within a study. Of the labelled subsets and seeds that both have; Dice alone.
"""

import argparse
import sys

import numpy as np

from learning_curves import panel, study_of
from study.description import StudyError
from study.report import over_runs, paired
from training_time import check_comparable


def compare(first: tuple[str, str], second: tuple[str, str], labeled: int) -> str:
    """A few lines: the Dice of both, how many cases gain from the second to the first, and p.

    Args:
        first: Folder of ``benchmarks/results`` and name of an arm.
        second: The same; of one that has all labels, it is its training with the same seed.
        labeled: Number of labelled cases.

    Raises:
        StudyError: As :func:`learning_curves.panel`, the folders are not comparable, or have no runs in common.
    """
    check_comparable(list(dict.fromkeys([first[0], second[0]])))
    runs = [_runs(*arm, labeled) for arm in (first, second)]
    pairs = [(a, b) for a in runs[0] for b in runs[1] if a[3] == b[3] and (a[2] == b[2] or None in (a[1], b[1]))]
    if not pairs:
        raise StudyError(
            f"{first[1]} and {second[1]} have no labelled subset and seed in common with {labeled} labelled cases."
        )
    cases = [over_runs(of_arm, list(dict.fromkeys(keys))) for of_arm, keys in zip(runs, zip(*pairs, strict=True), strict=True)]
    if set(cases[0]) != set(cases[1]):
        raise StudyError(f"{first[1]} and {second[1]} were measured on different cases.")
    gains = np.asarray([value - cases[1][case] for case, value in cases[0].items()])
    # a training with all labels has no subset
    of_subsets = sorted({key[2] for pair in pairs for key in pair if key[1] is not None})
    subsets = f", subsets {', '.join(map(str, of_subsets))}" if of_subsets else ""
    means = [f"{np.nanmean(list(of_arm.values())):.3f}" for of_arm in cases]
    return "\n".join(
        [
            *(f"{mean}  {arm} ({folder})" for mean, (folder, arm) in zip(means, (first, second), strict=True)),
            f"{labeled} labelled cases{subsets}: {(gains > 0).sum()} of {len(gains)} cases are better with the "
            f"first, the median by {np.nanmedian(gains):+.4f}; p = {paired(*cases)} (Wilcoxon signed rank test over cases)",
        ]
    )


def _runs(folder: str, arm: str, labeled: int) -> dict:
    """Dice by run and case, of an arm with so many labels, or with all."""
    arms = [known.name for known in study_of(folder)[0].arms]
    if arm not in arms:
        raise StudyError(f"the study of {folder} has no arm {arm!r}; there are {', '.join(arms)}.")
    found = {key: cases for key, cases in panel(folder, [arm]).items() if key[1] in (labeled, None)}
    if not found:
        raise StudyError(f"{folder} has no figures of {arm} with {labeled} labelled cases.")
    return found


def main() -> int:
    """Parses the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    for which in ("first", "second"):
        parser.add_argument(f"{which}_folder", metavar="FOLDER", help="of benchmarks/results")
        parser.add_argument(f"{which}_arm", metavar="ARM", help=f"the {which} arm")
    parser.add_argument("--labeled", type=int, required=True, metavar="N", help="number of labelled cases")
    options = parser.parse_args()
    try:
        print(compare((options.first_folder, options.first_arm), (options.second_folder, options.second_arm), options.labeled))
    except StudyError as error:
        print(f"compare_kept.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
