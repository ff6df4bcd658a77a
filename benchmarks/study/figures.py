"""Pictures of a study."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk
import torch

from study.commands import Workspace
from study.description import Run, Study
from study.runs import measured_data, metrics_file, model_folder

__all__ = ["arms", "gallery", "learning_curve", "learning_curves", "saturation", "training_curves", "training_time"]

Means = dict[tuple[str, int | None, int, int], dict[str, float]]


def _runs(means: Means) -> dict[str, dict[int | None, list[float]]]:
    """Mean Dice of every run by arm and number of labelled cases."""
    grouped: dict[str, dict[int | None, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (arm, labeled, _, _), cases in means.items():
        grouped[arm][labeled].append(float(np.nanmean(list(cases.values()))))
    return grouped


def learning_curve(study: Study, means: Means, path: Path) -> None:
    """Dice over the number of labelled cases, one line per arm without A; short marks are single runs, beside the means."""
    learning_curves({f"{study.name}, {study.iterations} iterations": means}, path)


def learning_curves(panels: dict[str, Means], path: Path) -> None:
    """A panel as that of :func:`learning_curve` for each title; an arm has one colour in all of them."""
    grouped = {title: {arm: p for arm, p in _runs(m).items() if not arm.endswith(" (A)")} for title, m in panels.items()}
    names = list(dict.fromkeys(arm for arms_of_panel in grouped.values() for arm in arms_of_panel))
    size = (6, 4) if len(panels) == 1 else (4.4 * len(panels), 3.6)
    figure, grid = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axes, (title, arms_of_panel) in zip(grid[0], grouped.items(), strict=True):
        _draw_learning_curve(axes, arms_of_panel, names)
        axes.set_title(title, fontsize=10)
    grid[0, 0].set_ylabel("Dice, mean of classes and cases")
    grid[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_learning_curve(axes: Any, grouped: dict[str, dict[int | None, list[float]]], names: list[str]) -> None:
    drawn = sorted({n for points in grouped.values() for n in points if n is not None})
    for arm, points in grouped.items():
        number = names.index(arm)
        color = f"C{number}"
        if None in points:
            axes.axhline(float(np.mean(points[None])), color=color, linestyle="--", label=arm)
        counts = sorted(n for n in points if n is not None)
        if counts:
            beside = 1 + 0.02 * (number - len(names) / 2)
            axes.plot([n * beside for n in counts], [np.mean(points[n]) for n in counts], "o-", color=color, label=arm)
            for n in counts:
                if len(points[n]) > 1:
                    axes.plot([n * beside] * len(points[n]), points[n], "_", color=color, alpha=0.7)
    axes.set_xlabel("labelled cases")
    if drawn:
        axes.set_xscale("log", base=2)
        axes.set_xticks(drawn, [str(n) for n in drawn])
        axes.set_xlim(drawn[0] / 1.3, drawn[-1] * 1.3)


def training_time(panels: dict[str, dict[str, dict[float, list[float]]]], title: str, path: Path) -> None:
    """Dice over the time of training, a panel per number of labels, one line per curve; short marks are single runs.

    Args:
        panels: Title: name of a curve: thousands of iterations of plain nnU-Net that take as long: mean Dice of every run.
        title: Of the picture.
        path: Of the picture.
    """
    size = (1.5 + 4.5 * len(panels), 4)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    for plot, (panel, curves) in zip(axes[0], panels.items(), strict=True):
        for color, (name, points) in zip(("C0", "C2", "C3"), curves.items(), strict=False):
            times = sorted(points)
            plot.plot(times, [np.mean(points[time]) for time in times], "o-", color=color, label=name)
            for time in times:
                if len(points[time]) > 1:
                    plot.plot([time] * len(points[time]), points[time], "_", color=color, alpha=0.7)
        plot.set_xlabel("training time, in 1000 iterations of plain nnU-Net")
        plot.set_title(panel, fontsize=10)
    axes[0, 0].set_xscale("log", base=2)  # of all, as they share it
    drawn = [time for curves in panels.values() for points in curves.values() for time in points]
    ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 128) if min(drawn) / 1.2 <= tick <= max(drawn) * 1.2]
    axes[0, 0].set_xticks(ticks, [str(tick) for tick in ticks])
    axes[0, 0].set_ylabel("Dice, mean of classes and cases")
    axes[0, -1].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def arms(study: Study, means: Means, path: Path) -> None:
    """Dice of every arm, single runs as points."""
    grouped = _runs(means)
    labels, values = [], []
    for arm, points in grouped.items():
        for n in sorted(points, key=lambda n: n or 10**6):
            labels.append(f"{arm}, {'all' if n is None else n}")
            values.append(points[n])
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.32 * len(labels)), layout="constrained")
    positions = np.arange(len(labels))[::-1]
    axes.barh(positions, [np.mean(v) for v in values], color="0.8")
    for position, value in zip(positions, values, strict=True):
        axes.plot(value, [position] * len(value), "o", color="C0", markersize=4)
    axes.set_yticks(positions, labels, fontsize=8)
    low = min(min(v) for v in values)
    axes.set_xlim(max(0.0, low - 0.05), min(1.0, max(max(v) for v in values) + 0.02))
    axes.set_xlabel("Dice (the axis does not start at 0)" if low > 0.05 else "Dice")
    figure.suptitle(f"{study.name}: arm, labelled cases", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


CURVES = {
    "train_losses": "supervised loss of V",
    "val_losses": "nnU-Net's validation loss",
    "ema_fg_dice": "nnU-Net's pseudo Dice (moving average)",
    "caml_consistency": "consistency loss",
    "caml_correlation": "OCC loss",
    "caml_row_peak": "largest entry of OCC's rows (1 is saturated)",
    "caml_agreement": "agreement of V and A",
}


def training_curves(study: Study, work: Workspace, path: Path) -> None:
    """What nnU-Net's log has of every finished run, by epoch."""
    logs = _logs(study, work)
    if not logs:
        return
    figure, grid = plt.subplots(2, 4, figsize=(15, 6), layout="constrained")
    for axes in grid.flat[len(CURVES) :]:
        axes.set_axis_off()
    for axes, (key, title) in zip(grid.flat, CURVES.items(), strict=False):
        _draw_log(axes, study, logs, key)
        axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def saturation(study: Study, work: Workspace, path: Path) -> None:
    """How peaked OCC's rows become, and what is left of its loss, in the runs that have OCC."""
    logs = [(run, log) for run, log in _logs(study, work) if np.nansum(log.get("caml_row_peak", 0)) > 0]
    if not logs:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    _draw_log(left, study, logs, "caml_row_peak")
    left.set_ylim(0, 1.02)
    left.set_title("largest entry of a correlation row, mean", fontsize=9)
    _draw_log(right, study, logs, "caml_correlation")
    right.set_yscale("log")
    right.set_title("OCC loss", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _logs(study: Study, work: Workspace) -> list[tuple[Run, dict]]:
    """nnU-Net's log of every finished run."""
    found = []
    for run in study.runs():
        file = model_folder(study, work, run) / "fold_all" / "checkpoint_final.pth"
        if file.is_file():
            found.append((run, torch.load(file, map_location="cpu", weights_only=False)["logging"]))
    return found


def _draw_log(axes: Any, study: Study, logs: list[tuple[Run, dict]], key: str) -> None:
    """One value of all logs over the epochs, a color for each arm."""
    colors = {arm.name: f"C{i}" for i, arm in enumerate(study.arms)}
    seen = set()
    for run, log in logs:
        if log.get(key):
            label = run.arm.name if run.arm.name not in seen else None
            seen.add(run.arm.name)
            axes.plot(log[key], color=colors[run.arm.name], label=label, alpha=0.8, linewidth=1)
    axes.set_xlabel("epoch", fontsize=8)
    if seen:
        axes.legend(fontsize=7)


def gallery(study: Study, work: Workspace, means: Means, path: Path) -> None:
    """Best, median and worst case of the last arm that is no upper bound, and what the other arms make of them."""
    candidates = [
        run
        for run in study.runs()
        if not run.arm.all_labels
        and (run.arm.name, run.labeled, run.subset, run.seed) in means
        and metrics_file(work, run).is_file()
    ]
    if not candidates:
        return
    chosen = candidates[-1]
    key = (chosen.arm.name, chosen.labeled, chosen.subset, chosen.seed)
    order = sorted((v, c) for c, v in means[key].items() if np.isfinite(v))
    if not order:
        return
    picked = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    siblings = [r for r in candidates if (r.labeled, r.subset, r.seed) == (chosen.labeled, chosen.subset, chosen.seed)]
    raw = measured_data(study, work, chosen)
    ending = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    columns = ["image", "truth", *(run.arm.name for run in siblings)]
    figure, grid = plt.subplots(3, len(columns), figsize=(2.2 * len(columns), 6.8), layout="constrained", squeeze=False)
    for row, (rank, (value, case)) in zip(grid, picked.items(), strict=True):
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTs" / f"{case}_0000{ending}")))
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTs" / f"{case}{ending}")))
        maps = [None, truth]
        for run in siblings:
            file = work.measured("predictions") / metrics_file(work, run).stem / f"{case}{ending}"
            maps.append(sitk.GetArrayFromImage(sitk.ReadImage(str(file))))
        level = int(np.argmax((truth > 0).sum((1, 2))))
        for axes, title, label in zip(row, columns, maps, strict=True):
            axes.imshow(image[level], cmap="gray")
            if label is not None:
                overlay = np.ma.masked_equal(label[level], 0)
                axes.imshow(overlay, cmap="tab10", vmin=0, vmax=9, alpha=0.5, interpolation="nearest")
            axes.set_title(title, fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(f"{rank} of {chosen.arm.name}\n{case}, Dice {value:.2f}", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
