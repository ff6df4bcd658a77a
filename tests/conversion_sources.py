"""Small source folders of the layouts that several tests convert."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from conversion_helpers import image_of, random_image, random_label, write, write_h5, write_lists


def left_atrium(folder: Path, cases: int = 5, tests: int = 2, **geometry: object) -> Path:
    """The challenge's layout; train.list is deliberately not sorted."""
    names = [f"C{7 * (number + 1) % 10}X{number}" for number in range(cases + tests)]
    for number, name in enumerate(names):
        write(folder / name / "lgemri.nrrd", random_image(number, np.uint8), **geometry)
        write(folder / name / "laendo.nrrd", (255 * random_label(number)).astype(np.uint8), **geometry)
    return write_lists(folder, train=names[:cases], test=names[cases:])


def left_atrium_h5(folder: Path) -> Path:
    """The literature's layout."""
    for number, name in enumerate("ABCD"):  # axes x, y, z
        image, label = random_image(number).transpose().astype(np.float32) / 7 - 5, random_label(number).transpose()
        write_h5(folder / "2018LA_Seg_Training Set" / name / "mri_norm2.h5", image, label.astype(np.uint8))
    return write_lists(folder, train="ABC", test="D")


def decathlon(folder: Path, channels: int = 2, cases: int = 6, **geometry: object) -> Path:
    """A task with ``channels`` channels in one 4-D file, hidden files of macOS, and test images without labels."""
    names = [f"organ_{number:03d}" for number in range(cases)]
    for part, group in (("Tr", names), ("Ts", ["organ_900", "organ_901"])):
        for number, name in enumerate(group):
            volumes = [image_of(random_image(10 * number + c), **geometry) for c in range(channels)]  # type: ignore[arg-type]
            path = folder / f"images{part}" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.JoinSeries(volumes) if channels > 1 else volumes[0], str(path))
            path.with_name(f"._{path.name}").write_bytes(b"macOS")
            if part == "Tr":
                write(folder / "labelsTr" / path.name, random_label(number, 3).astype(np.uint8), **geometry)
    content = {
        "name": "Organ",
        "licence": "CC-BY-SA 4.0",
        "reference": "somewhere",
        "modality": {str(c): f"M{c}" for c in range(channels)},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": ["./imagesTs/organ_900.nii.gz", "./imagesTs/organ_901.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def raw_data_set(folder: Path, cases: int = 6, ending: str = ".nii.gz", channels: int = 1) -> Path:
    """A data set of nnU-Net with test cases, one of them without a label, and an unlabelled case."""
    for number in range(cases):
        for channel in range(channels):
            write(folder / "imagesTr" / f"p{number}_{channel:04d}{ending}", random_image(10 * number + channel))
        write(folder / "labelsTr" / f"p{number}{ending}", random_label(number, 4).astype(np.uint8))
    for channel in range(channels):
        write(folder / "imagesTs" / f"t0_{channel:04d}{ending}", random_image(50))
        write(folder / "imagesTs" / f"t1_{channel:04d}{ending}", random_image(51))
        write(folder / "imagesUn" / f"u0_{channel:04d}{ending}", random_image(52))
    write(folder / "labelsTs" / f"t0{ending}", random_label(50, 4).astype(np.uint8))
    content = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3},
        "regions_class_order": [1, 2, 3],
        "numTraining": cases,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
