"""Writes the synthetic cases as a raw data set of nnU-Net's, with the unlabelled ones in ``imagesUn/``."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_caml.demo.synthetic import EVERYONE, LABELS, NARROW, SyntheticCase, draw_case
from nnunet_caml.unlabeled import RAW_FOLDER

__all__ = ["DATASET_ID", "DATASET_NAME", "TEST_IMAGES", "TEST_LABELS", "read", "write_dataset"]

DATASET_ID = 990
DATASET_NAME = f"Dataset{DATASET_ID}_SyntheticBody"
TEST_IMAGES = "imagesTs"
TEST_LABELS = "labelsTs"
FILE_ENDING = ".nii.gz"


def write_dataset(
    raw: Path, *, labeled: int = 4, unlabeled: int = 76, test: int = 12, seed: int = 2023, narrow: bool = False
) -> Path:
    """Writes the data set. The same arguments give the same voxels.

    The truth of unlabelled cases is never written, so nothing can read it by mistake.

    Args:
        raw: Becomes ``nnUNet_raw``.
        labeled: Number of labelled cases.
        unlabeled: Number of unlabelled cases, from :data:`nnunet_caml.demo.synthetic.EVERYONE`.
        test: Number of held-out cases, from the same.
        seed: Every case has a random generator of its own made from it, so more of one kind change nothing in the others.
        narrow: Labelled cases are from :data:`nnunet_caml.demo.synthetic.NARROW` instead.

    Returns:
        The data set folder.
    """
    folder = raw / DATASET_NAME
    kinds = (
        ("labeled", labeled, NARROW if narrow else EVERYONE, "imagesTr", "labelsTr"),
        ("unlabeled", unlabeled, EVERYONE, RAW_FOLDER, None),
        ("test", test, EVERYONE, TEST_IMAGES, TEST_LABELS),
    )
    with tqdm(total=labeled + unlabeled + test, desc="Drawing cases", unit="case") as bar:
        for number, (kind, count, population, images, labels) in enumerate(kinds):
            for i in range(count):
                case = draw_case(np.random.default_rng([seed, number, i]), population)
                _write_case(case, f"{kind}_{i:03d}", folder / images, folder / labels if labels else None)
                bar.update()
    content = {
        "name": "Synthetic body",
        "channel_names": {"0": "synthetic"},
        "labels": LABELS,
        "numTraining": labeled,
        "file_ending": FILE_ENDING,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def _write_case(case: SyntheticCase, identifier: str, images: Path, labels: Path | None) -> None:
    outputs: list[tuple[NDArray, Path]] = [(case.image, images / f"{identifier}_0000{FILE_ENDING}")]
    if labels is not None:
        outputs.append((case.label, labels / f"{identifier}{FILE_ENDING}"))
    for array, path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(array)  # spacing 1 mm
        # every scanner has its own origin; nnU-Net has to bring it back with the prediction
        image.SetOrigin([-n / 2 for n in reversed(array.shape)])
        sitk.WriteImage(image, str(path), useCompression=True)


def read(path: Path) -> NDArray:
    """Voxels of a file, ``(Z, Y, X)``."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
