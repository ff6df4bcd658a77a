"""Dice of the predictions of held-out cases."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_caml.demo.dataset import FILE_ENDING, read
from nnunet_caml.demo.synthetic import LABELS

__all__ = ["ORGANS", "Scores", "dice", "score", "statistics", "table"]

ORGANS = {name: value for name, value in LABELS.items() if value}

#: case -> organ -> Dice
Scores = Mapping[str, Mapping[str, float]]


def dice(prediction: NDArray, truth: NDArray) -> float:
    """Dice of two masks of the same shape, 0 to 1; 1 if both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def score(predictions: Path, truth: Path) -> dict[str, dict[str, float]]:
    """Dice of every organ in every case of ``truth``.

    Raises:
        FileNotFoundError: A case has no prediction.
    """
    scores = {}
    for file in sorted(truth.glob(f"*{FILE_ENDING}")):
        if not (predictions / file.name).is_file():
            raise FileNotFoundError(f"{predictions / file.name} is missing: nnUNetv2_predict did not write it.")
        expected, predicted = read(file), read(predictions / file.name)
        scores[file.name.removesuffix(FILE_ENDING)] = {
            organ: dice(predicted == value, expected == value) for organ, value in ORGANS.items()
        }
    return scores


def statistics(scores: Scores) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the cases, per organ and (``"mean"``) of the mean of the organs."""
    columns = {organ: [case[organ] for case in scores.values()] for organ in ORGANS}
    columns["mean"] = [float(np.mean([case[organ] for organ in ORGANS])) for case in scores.values()]
    return {name: {"mean": float(np.mean(v)), "std": float(np.std(v))} for name, v in columns.items()}


def table(scores: Mapping[str, Scores]) -> str:
    """A table for the terminal, one row per trainer."""
    names = [*ORGANS, "mean"]
    rows = [f"{'':<16}" + "".join(f"{name:>18}" for name in names)]
    for trainer, cases in scores.items():
        row = statistics(cases)
        rows.append(f"{trainer:<16}" + "".join(f"{row[n]['mean']:>11.3f} ± {row[n]['std']:.2f}" for n in names))
    return "\n".join(rows)
