"""What a prediction is worth, per case and class."""

import csv
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from medpy.metric import binary

from study.description import StudyError

__all__ = ["COLUMNS", "measure", "measure_case", "read_metrics"]

METRICS = ("dice", "jaccard", "hd95_mm", "asd_mm", "hd95_voxels", "asd_voxels")
COLUMNS = ("case", "class", *METRICS)


def measure_case(
    prediction: Path, truth: Path, classes: dict[str, int | list[int]], ending: str = ".nii.gz", ignore: int | None = None
) -> list[dict[str, str | float]]:
    """Overlap and surface distances of one case, by MedPy, as the literature of the field has them.

    Distances of a class that one of the two does not have are not defined: they are ``nan``, and are left out of means
    (how many there are is in the report). Where both lack it, overlap is ``nan`` too.

    Args:
        prediction: Label map.
        truth: Label map on the same grid.
        classes: Name to label value, or to the values that make up a region.
        ending: Of the file names; what stands before it is the case.
        ignore: Value of voxels of the truth that count for nothing.

    Returns:
        A row per class with :data:`COLUMNS`. Dice and Jaccard are in 0 to 1.

    Raises:
        FileNotFoundError: There is no prediction.
        StudyError: The grids differ.
    """
    if not prediction.is_file():
        raise FileNotFoundError(f"{prediction} is missing: nnUNetv2_predict did not write it.")
    predicted_image, true_image = sitk.ReadImage(str(prediction)), sitk.ReadImage(str(truth))
    if predicted_image.GetSize() != true_image.GetSize():
        sizes = f"has the size {predicted_image.GetSize()}, but {truth} has {true_image.GetSize()}"
        raise StudyError(f"{prediction} {sizes}: remove the predictions, and start the study again.")
    predicted_map, true_map = sitk.GetArrayFromImage(predicted_image), sitk.GetArrayFromImage(true_image)
    counts = np.ones(true_map.shape, bool) if ignore is None else true_map != ignore
    spacing = true_image.GetSpacing()[::-1]
    rows: list[dict[str, str | float]] = []
    for name, values in classes.items():
        predicted, true = np.isin(predicted_map, values) & counts, np.isin(true_map, values)
        row: dict[str, str | float] = {"case": truth.name.removesuffix(ending), "class": name} | dict.fromkeys(METRICS, np.nan)
        if predicted.any() or true.any():
            both, either = int((predicted & true).sum()), int((predicted | true).sum())
            row["dice"], row["jaccard"] = 2 * both / (both + either), both / either
        if predicted.any() and true.any():
            for unit, size in (("mm", spacing), ("voxels", None)):
                row[f"hd95_{unit}"] = float(binary.hd95(predicted, true, voxelspacing=size))
                row[f"asd_{unit}"] = float(binary.asd(predicted, true, voxelspacing=size))
        rows.append(row)
    return rows


def measure(
    predictions: Path,
    truth: Path,
    classes: dict[str, int | list[int]],
    ending: str,
    csv_file: Path,
    processes: int = 2,
    ignore: int | None = None,
) -> None:
    """Measures all cases of ``truth``, ``processes`` at once, and writes the rows to a CSV file, whole or not at all."""
    cases = sorted(truth.glob(f"*{ending}"))
    # not forked: a study with several jobs has threads, and ITK of its own, which a fork can leave hanging
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        arguments = repeat(classes), repeat(ending), repeat(ignore)
        results = pool.map(measure_case, [predictions / case.name for case in cases], cases, *arguments)
        rows = [row for result in results for row in result]
    csv_file.parent.mkdir(parents=True, exist_ok=True)
    half = csv_file.with_suffix(".tmp")
    with half.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    half.replace(csv_file)


def read_metrics(csv_file: Path) -> list[dict[str, str | float]]:
    """The rows that :func:`measure` wrote."""
    with csv_file.open(newline="", encoding="utf-8") as file:
        return [{k: v if k in ("case", "class") else float(v) for k, v in row.items()} for row in csv.DictReader(file)]
