"""A contact sheet: a few slices of a few cases, labels on top, to see at a glance whether all is well."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_caml.conversion.reading import read_image

COLUMNS = 4  # slices of a case
ROWS_PER_ROLE = {"labeled": 3, "unlabeled": 2, "test": 2}


def write_preview(
    folder: Path,
    ending: str,
    identifiers: Mapping[str, Sequence[str]],
    target: Path,
    in_place: Mapping[str, Sequence[Path]] | None = None,
) -> None:
    """Draws the first channel of the first cases of each kind.

    Args:
        folder: The data set.
        ending: Of its files.
        identifiers: Cases for each of ``"labeled"``, ``"unlabeled"`` and ``"test"``.
        target: The PNG file to write.
        in_place: Files of the cases that lie elsewhere.
    """
    short = {"labeled": "Tr", "unlabeled": "Un", "test": "Ts"}
    rows = [(role, name) for role, number in ROWS_PER_ROLE.items() for name in identifiers[role][:number]]
    figure = Figure(figsize=(2.2 * COLUMNS, 2.2 * len(rows)), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = np.atleast_2d(figure.subplots(len(rows), COLUMNS, squeeze=False))
    for row, (role, name) in zip(axes, rows, strict=True):
        elsewhere = (in_place or {}).get(name)
        image = read_image(elsewhere[0] if elsewhere else folder / f"images{short[role]}" / f"{name}_0000{ending}")
        path = folder / f"labels{short[role]}" / f"{name}{ending}"
        label = read_image(path) if path.is_file() else None
        _draw_case(row, image, label)
        row[0].set_title(f"{name} ({role.replace('eled', 'elled')})", loc="left", fontsize=8, parse_math=False)
    figure.savefig(target, metadata={"Software": None})  # the same bytes with any version of matplotlib's name


def _draw_case(row: np.ndarray, image: sitk.Image, label: sitk.Image | None) -> None:
    """Draws one case into a row of axes, in planes across the axis with the largest spacing (the last one if equal)."""
    array, spacing = _volume(image)
    segmentation = np.zeros(array.shape, int) if label is None else _volume(label)[0].astype(int)
    axis = int(np.argmax(spacing))
    array, segmentation = (np.moveaxis(volume, axis, 0) for volume in (array, segmentation))
    height, width = np.delete(spacing, axis)
    low, high = np.percentile(array, [1, 99])
    levels = np.flatnonzero(segmentation.any(axis=(1, 2)))
    first, last = (levels[0], levels[-1]) if len(levels) else (0, len(array) - 1)
    for column, axes in enumerate(row):
        level = round(first + (last - first) * (column + 1) / (len(row) + 1))
        axes.imshow(array[level], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=height / width)
        shown = np.ma.masked_equal(segmentation[level], 0)
        colours = colormaps["tab10"]
        axes.imshow(shown, cmap=colours, vmin=1, vmax=10, alpha=0.45, interpolation="nearest", aspect=height / width)
        axes.set_axis_off()
        axes.text(0.02, 0.02, f"{level}", color="white", fontsize=7, backgroundcolor="black", transform=axes.transAxes)


def _volume(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Array ``(z, y, x)`` and spacing in mm in the same order; a 2-D image is one thick slice, colours are averaged."""
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = array.mean(axis=-1)
    spacing = np.array(image.GetSpacing()[::-1])
    return (array, spacing) if array.ndim == 3 else (array[None], np.array([999.0, *spacing]))
