"""The picture at the end of the demo: image, truth and both predictions of three held-out cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from nnunet_caml.demo.evaluation import ORGANS, dice

__all__ = ["Row", "best_median_worst", "write_figure"]

COLORS = {"liver": "#ffb000", "kidney": "#35c7ff"}


@dataclass(frozen=True)
class Row:
    """A case of the figure.

    Attributes:
        name: Stands left of the row.
        image: ``(Z, Y, X)``.
        truth: ``(Z, Y, X)``, label values.
        predictions: ``(Z, Y, X)`` each, by the name of the trainer.
    """

    name: str
    image: NDArray
    truth: NDArray
    predictions: Mapping[str, NDArray]


def best_median_worst(scores: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Which case stands for ``best``, ``median`` and ``worst`` by the mean Dice of the organs."""
    ranked = sorted(scores, key=lambda case: np.mean(list(scores[case].values())), reverse=True)
    return {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}


def write_figure(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG: a row per case, columns image, truth and the trainers."""
    trainers = list(rows[0].predictions)
    figure = Figure(figsize=(2.6 * (2 + len(trainers)) + 0.4, 2.95 * len(rows) + 0.5), facecolor="white", layout="constrained")
    axes = figure.subplots(len(rows), 2 + len(trainers), squeeze=False)
    for number, row in enumerate(rows):
        z = _slice(row.truth)
        low, high = np.percentile(row.image, (1, 99.8))
        panels: list[tuple[str, NDArray | None]] = [("image", None), ("truth", row.truth), *row.predictions.items()]
        for axis, (title, label) in zip(axes[number], panels, strict=True):
            axis.imshow(row.image[z], cmap="gray", vmin=low, vmax=high, interpolation="bicubic")
            if label is not None:
                _outline(axis, label[z])
            if title in row.predictions and label is not None:
                each = (f"{organ} {dice(label == value, row.truth == value):.2f}" for organ, value in ORGANS.items())
                axis.set_xlabel("Dice of the case: " + ", ".join(each), fontsize=9)
            if number == 0:
                axis.set_title(title, fontsize=12, fontweight="bold")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[number][0].set_ylabel(row.name, fontsize=10)
        axes[number][0].set_xlabel(f"axial slice {z + 1} of {len(row.image)}", fontsize=9)
    handles = [Line2D([], [], color=COLORS[organ], linewidth=2, label=organ) for organ in ORGANS]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=130)


def _slice(truth: NDArray) -> int:
    """The axial slice that shows most of all organs at once."""
    areas = np.stack([(truth == value).sum((1, 2)) for value in ORGANS.values()]).astype(float)
    return int(np.argmax(np.prod(areas + 1, axis=0)))


def _outline(axis: Axes, label: NDArray) -> None:
    """Draws the organs of a slice, filled faintly, with their borders."""
    for organ, value in ORGANS.items():
        mask = label == value
        if mask.any():
            filled = np.ma.masked_array(np.ones(mask.shape), ~mask)
            axis.imshow(filled, cmap=ListedColormap([COLORS[organ]]), vmin=0, vmax=1, alpha=0.18, interpolation="nearest")
            axis.contour(mask, [0.5], colors=COLORS[organ], linewidths=1.6)
