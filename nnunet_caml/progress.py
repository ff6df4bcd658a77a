"""What CAML adds to nnU-Net's log: values per epoch, a line in the log file and a second figure beside ``progress.png``.

nnU-Net's ``MetaLogger`` hands values to Weights & Biases by itself when ``nnUNet_wandb_enabled`` is set.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

PREFIX = "caml_"
#: key: (how it is called in the log line, panel of the figure)
VALUES = {
    "supervised": ("L_s", "supervised loss"),
    "supervised_a": ("of which auxiliary", "supervised loss"),
    "consistency": ("L_c", "mutual consistency"),
    "correlation": ("L_o", "omni-correlation consistency"),
    "row_peak": ("largest entry of a correlation row (1 is saturated)", "shares"),
    "lambda_c": ("lambda_c", "weights"),
    "lambda_o": ("lambda_o", "weights"),
    "agreement": (
        "agreement of V and A on unlabelled patches (mean foreground Dice)",
        "agreement on unlabelled patches (Dice)",
    ),
    "memory": ("share of classes with a full memory", "shares"),
    "waiting": ("share of the epoch spent waiting for data", "shares"),
}
FIGURE = "progress_caml.png"


def add_keys(logger: Any) -> None:
    """Makes the local logger accept our values. A log saved without them is filled up with NaN."""
    values = logger.local_logger.my_fantastic_logging
    for key in VALUES:
        values.setdefault(PREFIX + key, [float("nan")] * len(values["train_losses"]))


def epoch_values(outputs: dict[str, Any], lambda_c: float, lambda_o: float, waiting: float) -> dict[str, float]:
    """Values of an epoch from what its steps gave.

    Args:
        outputs: By name, a row per step: ``loss``, ``loss_a``, ``consistency``, ``correlation``, ``row_peak``, ``memory`` and
            the counts ``agreement`` of :func:`nnunet_caml.learning.agreement_counts`, ``(steps, 3, classes)``.
        lambda_c: Weight of the consistency at the end of the epoch.
        lambda_o: Weight of OCC.
        waiting: Share of the epoch that was spent waiting for data.

    Returns:
        A number for each of :data:`VALUES`.
    """
    both, v, a = np.asarray(outputs["agreement"], dtype=float).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        dice = 2 * both / (v + a)
    return {
        "supervised": float(np.mean(outputs["loss"]) + np.mean(outputs["loss_a"])),
        "supervised_a": float(np.mean(outputs["loss_a"])),
        "consistency": float(np.mean(outputs["consistency"])),
        "correlation": float(np.mean(outputs["correlation"])),
        "row_peak": float(np.mean(outputs["row_peak"])),
        "lambda_c": lambda_c,
        "lambda_o": lambda_o,
        # no unlabelled patches yet, or no class predicted by either: nothing to agree on
        "agreement": float(np.nanmean(dice)) if np.isfinite(dice).any() else float("nan"),
        "memory": float(np.asarray(outputs["memory"])[-1]),
        "waiting": waiting,
    }


def log(logger: Any, values: dict[str, float], epoch: int) -> None:
    """Logs one value for each of :data:`VALUES`."""
    for key in VALUES:
        logger.log(PREFIX + key, values[key], epoch)


def describe(values: dict[str, float]) -> str:
    """One line for the log file; without the agreement while there is none. A loss that is not finite is to be seen."""
    known = {name: values[key] for key, (name, _) in VALUES.items() if key != "agreement" or not np.isnan(values[key])}
    return "CAML: " + ", ".join(f"{name} {value:.4f}" for name, value in known.items())


def plot(logger: Any, folder: Path) -> None:
    """Draws all values over the epochs into :data:`FIGURE` of ``folder``."""
    # nnU-Net draws its own figure with letters of two and a half times the size, and leaves them to everything after it
    with plt.style.context("default"):
        figure = _figure(logger)
        temporary = folder / f".{FIGURE}"
        figure.savefig(temporary, format="png", dpi=80)
        temporary.replace(folder / FIGURE)
        plt.close(figure)


def _figure(logger: Any) -> Figure:
    panels: dict[str, list[str]] = {}
    for key, (_, panel) in VALUES.items():
        panels.setdefault(panel, []).append(key)
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for axis, (panel, keys) in zip(axes.flat, panels.items(), strict=True):
        for key in keys:
            values = np.asarray(logger.get_value(PREFIX + key, step=None), dtype=float)
            label = {
                "supervised": "V + A",
                "supervised_a": "A",
                "memory": "classes with a full memory",
                "waiting": "waiting for data",
                "row_peak": "largest entry of OCC's rows",
            }.get(key, key)
            # a single epoch would be an invisible line
            axis.plot(np.arange(len(values)), values, label=label, marker="o" if len(values) < 30 else None, markersize=3)
        axis.set(title=panel, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if panel in ("shares", "agreement on unlabelled patches (Dice)"):
            axis.set_ylim(-0.02, 1.02)
        if len(keys) > 1:
            axis.legend()
        axis.grid(alpha=0.3)
    return figure
