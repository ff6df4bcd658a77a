"""Pictures of a study."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk
import torch
from matplotlib.lines import Line2D

from study.commands import Workspace
from study.description import Run, Study
from study.runs import measured_data, metrics_file, model_folder

__all__ = [
    *("arms", "gallery", "learning_curve", "learning_curves", "saturation", "training_curves", "training_time"),
    "without_auxiliary",
]

Means = dict[tuple[str, int | None, int, int], dict[str, float]]

#: of the first ten arms, which have a colour each, of the next ten, and so on
MARKERS = "osD^vPX"
LINES = ("-", ":", "-.")
#: how far arms may stand from their number of labelled cases, and from the next arm, lest they hide each other; as shares of it
BESIDE, NEXT_TO = 0.08, 0.04


def _runs(means: Means) -> dict[str, dict[int | None, list[float]]]:
    """Mean Dice of every run by arm and number of labelled cases."""
    grouped: dict[str, dict[int | None, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (arm, labeled, _, _), cases in means.items():
        grouped[arm][labeled].append(float(np.nanmean(list(cases.values()))))
    return grouped


def without_auxiliary(study: Study, means: Means) -> Means:
    """What users get: CAML's network A, where it was measured as well, has figures under ``"ARM (A)"``."""
    names = {f"{arm.name} (A)" for arm in study.arms if arm.auxiliary} - {arm.name for arm in study.arms}
    return {key: cases for key, cases in means.items() if key[0] not in names}


def learning_curve(study: Study, means: Means, path: Path) -> None:
    """Dice over the number of labelled cases, one line per arm without A; short marks are single runs, beside the means."""
    learning_curves([(f"{study.name}, {study.iterations} iterations", without_auxiliary(study, means))], path)


def learning_curves(panels: list[tuple[str, Means]], path: Path) -> None:
    """A panel as that of :func:`learning_curve` for each title; an arm looks the same in all of them."""
    grouped = [_runs(means) for _, means in panels]
    names = list(dict.fromkeys(arm for arms_of_panel in grouped for arm in arms_of_panel))
    size = (6, 4) if len(panels) == 1 else (4.4 * len(panels), 3.6)
    figure, grid = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axes, (title, _), arms_of_panel in zip(grid[0], panels, grouped, strict=True):
        _draw_learning_curve(axes, arms_of_panel, names)
        axes.set_title(title, fontsize=10)
    grid[0, 0].set_ylabel("Dice, mean of classes and cases")
    lines = _lines_by_label(grid[0])
    legend = {name: lines[name] for name in names}
    if any(line.get_markerfacecolor() == "white" for axes in grid[0] for line in axes.get_lines()):
        legend["hollow: fewer trainings"] = Line2D([], [], color="0.4", marker="o", markerfacecolor="white", linestyle="none")
    _add_legend(figure, legend)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _lines_by_label(axes: Any) -> dict[str, Any]:
    """A line for each label, of whichever axes have it first."""
    found: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return found


def _add_legend(figure: Any, lines: dict[str, Any]) -> None:
    """Below the axes, where it covers nothing; the figure grows by as much as it takes."""
    if not lines:
        return
    width, height = figure.get_size_inches()
    column = 0.6 + 0.07 * max(map(len, lines))  # in inches, of 8 pt
    columns = min(len(lines), max(1, int(width / column)))
    figure.set_size_inches(max(width, column), height + 0.2 + 0.18 * math.ceil(len(lines) / columns))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, fontsize=8)


def _look(number: int) -> dict[str, Any]:
    """Colour, marker and line of an arm, by its place among all; there are ten colours."""
    tens = number // 10
    return {"color": f"C{number % 10}", "marker": MARKERS[tens % len(MARKERS)], "linestyle": LINES[tens % len(LINES)]}


def _draw_learning_curve(axes: Any, grouped: dict[str, dict[int | None, list[float]]], names: list[str]) -> None:
    drawn = sorted({n for points in grouped.values() for n in points if n is not None})
    most = {n: max(len(points.get(n, [])) for points in grouped.values()) for n in drawn}
    curves = [arm for arm in names if any(n is not None for n in grouped.get(arm, {}))]
    step = min(NEXT_TO, 2 * BESIDE / max(1, len(curves) - 1))
    for arm, points in grouped.items():
        look = _look(names.index(arm))
        if None in points:
            dashes = (0, (3.7 * (1 + names.index(arm) // 10), 1.6))  # longer ones after ten colours
            axes.axhline(float(np.mean(points[None])), color=look["color"], linestyle=dashes, label=arm)
        if arm not in curves:
            continue
        beside = 1 + step * (curves.index(arm) - (len(curves) - 1) / 2)
        means = {n: float(np.mean(points[n])) for n in sorted(n for n in points if n is not None)}
        axes.plot([n * beside for n in means], list(means.values()), **look, label=arm)
        fewer = [n for n in means if len(points[n]) < most[n]]
        if fewer:
            hollow = {**look, "linestyle": "none", "markerfacecolor": "white"}
            axes.plot([n * beside for n in fewer], [means[n] for n in fewer], **hollow)
        for n in means:
            if len(points[n]) > 1:
                axes.plot([n * beside] * len(points[n]), points[n], "_", color=look["color"], alpha=0.7)
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
    names = dict.fromkeys(name for curves in panels.values() for name in curves)
    colors = dict(zip(names, ("C0", "C2", "C1", "C3"), strict=False))
    for plot, (panel, curves) in zip(axes[0], panels.items(), strict=True):
        for name, points in curves.items():
            color = colors[name]
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
    lines = _lines_by_label(axes[0])  # the last panel may lack a curve that others have
    axes[0, -1].legend(lines.values(), lines.keys(), fontsize=8)
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
    axes.set_ylim(-0.7, len(labels) - 0.3)
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
    """One value of all logs over the epochs, colour and line those of the arm."""
    looks = {arm.name: {**_look(i), "marker": ""} for i, arm in enumerate(study.arms)}
    seen = set()
    for run, log in logs:
        if log.get(key):
            label = run.arm.name if run.arm.name not in seen else None
            seen.add(run.arm.name)
            axes.plot(log[key], **looks[run.arm.name], label=label, alpha=0.8, linewidth=1)
    axes.set_xlabel("epoch", fontsize=8)
    if seen:
        axes.legend(fontsize=7)


def gallery(study: Study, work: Workspace, means: Means, path: Path) -> None:
    """Best, median and worst case of the last arm that is no upper bound, and what the other arms make of them.

    Runs whose images, labels or predictions are not all there any more are left out; without any there is no picture.
    """
    files = {
        key: found
        for run in study.runs()
        if not run.arm.all_labels
        and (cases := means.get(key := (run.arm.name, run.labeled, run.subset, run.seed)))
        and (found := _files(study, work, run, [case for case, value in cases.items() if np.isfinite(value)]))
    }
    if not files:
        return
    chosen = list(files)[-1]
    order = sorted((means[chosen][case], case) for case in files[chosen])
    picked = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    shown = [case for _, case in picked.values()]
    siblings = [key for key in files if key[1:] == chosen[1:] and all(case in files[key] for case in shown)]
    columns = ["image", "truth", *(name for name, *_ in siblings)]
    figure, grid = plt.subplots(3, len(columns), figsize=(2.2 * len(columns), 6.8), layout="constrained", squeeze=False)
    for row, (rank, (value, case)) in zip(grid, picked.items(), strict=True):
        image, truth = (_slices(file) for file in files[chosen][case][:2])
        maps = [None, truth, *(_slices(files[key][case][2]) for key in siblings)]
        level = int(np.argmax((truth > 0).sum((1, 2))))
        for axes, title, label in zip(row, columns, maps, strict=True):
            axes.imshow(image[level], cmap="gray")
            if label is not None:
                overlay = np.ma.masked_where(label[level] == 0, label[level] % 10)  # as many colours as the map has
                axes.imshow(overlay, cmap="tab10", vmin=0, vmax=9, alpha=0.5, interpolation="nearest")
            axes.set_title(title, fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(f"{rank} of {chosen[0]}\n{case}, Dice {value:.2f}", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _files(study: Study, work: Workspace, run: Run, cases: list[str]) -> dict[str, tuple[Path, Path, Path]]:
    """Image, label and prediction of each case of a run that was measured here; nothing if any of these files is missing."""
    if not metrics_file(work, run).is_file():
        return {}
    raw, predictions = measured_data(study, work, run), work.measured("predictions") / metrics_file(work, run).stem
    if not (raw / "dataset.json").is_file():
        return {}
    ending = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    found = {
        case: (
            raw / "imagesTs" / f"{case}_0000{ending}",
            raw / "labelsTs" / f"{case}{ending}",
            predictions / f"{case}{ending}",
        )
        for case in cases
    }
    return found if all(file.is_file() for files in found.values() for file in files) else {}


def _slices(file: Path) -> np.ndarray:
    """The slices of an image; one of two dimensions is a slice."""
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image)
    return array[None] if image.GetDimension() == 2 else array
