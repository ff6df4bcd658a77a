"""Pancreas-CT, written small in both of its layouts."""

import itertools
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from conversion_helpers import write, write_h5, write_lists

SHAPE = (8, 12, 14)  # z, y, x
GEOMETRY = {"spacing": (0.7, 0.75, 1.25), "origin": (-100.5, 80.25, -30.5)}
FLIPS = list(itertools.product((False, True), repeat=3))


def organ() -> np.ndarray:
    """A shape without any symmetry, away from the middle."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 2:6, 2:8] = 1
    mask[3:5, 3:5, 7:11] = 1
    return mask


def scan(seed: int, contrast: float = 120) -> np.ndarray:
    """Noisy HU with an organ brighter than the fat around it."""
    noise = np.random.default_rng(seed).normal(-80, 20, SHAPE)
    return np.rint(noise + contrast * organ()).astype(np.int16)


def write_series(folder: Path, array: np.ndarray, case: int = 1, **options) -> Path:
    """Real DICOM slices, whose names are in the order opposite to their positions."""
    spacing, origin = (options.get(key, GEOMETRY[key]) for key in ("spacing", "origin"))
    direction = np.array(options.get("direction", np.eye(3)), float).reshape(3, 3)
    uid, slope = f"1.2.826.0.1.3680043.2.1125.{case}", options.get("slope", "1")
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, plane in enumerate(array):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing(spacing[:2])
        position = np.array(origin) + direction[:, 2] * spacing[2] * number
        tags = {
            "0008|0060": "CT",
            "0010|0010": "Doe^Jane",
            "0020|000d": f"{uid}.1",
            "0020|000e": f"{uid}.{options.get('series', 2)}",
            "0008|0018": f"{uid}.3.{number + 1}",
            "0020|0013": str(len(array) - number),
            "0020|0032": "\\".join(repr(float(value)) for value in position),
            "0020|0037": "\\".join(repr(float(value)) for value in direction[:, :2].T.ravel()),
            "0028|1052": options.get("intercept", "-1024"),
            "0028|1053": slope,
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"1-{len(array) - number:03d}.dcm"))
        writer.Execute(image)
    return folder


def pancreas_ct(source: Path, cases: tuple[int, ...] = (57, 18, 62, 50), labels: bool = True) -> Path:
    """The archive's layout: each label lies another way, and its header has no origin."""
    for number in cases:
        folder = source / "Pancreas-CT" / f"PANCREAS_{number:04d}" / "11-24-2015" / f"Pancreas-{number}"
        write_series(folder, scan(number), number)
        if labels:
            stored = np.flip(organ(), [axis for axis in range(3) if number >> axis & 1])
            path = source / "TCIA_pancreas_labels-02-05-2017" / f"label{number:04d}.nii.gz"
            write(path, stored, spacing=GEOMETRY["spacing"], direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return source


def lists(folder: Path, train: tuple[int, ...] = (57, 18, 62), test: tuple[int, ...] = (50,)) -> Path:
    """The literature's lists of some of the cases."""
    names = {"train": [f"image{number:04d}" for number in train], "test": [f"image{number:04d}" for number in test]}
    return write_lists(folder, **names)


def pancreas_h5(source: Path) -> Path:
    """The literature's layout, axes x, y, z."""
    for number in (57, 18, 62, 50):
        image, label = scan(number).transpose().astype(np.float32) / 7, organ().transpose().astype(np.float32)
        write_h5(source / "Pancreas_h5" / f"image{number:04d}_norm.h5", image, label)
    return lists(source)
