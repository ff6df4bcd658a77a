"""MM-WHS: CT and MR with seven heart structures."""

import shutil
from pathlib import Path

import numpy as np
from conversion_damage import fuzz
from conversion_helpers import (
    OBLIQUE,
    SHAPE,
    assert_same_geometry,
    check_converted,
    dataset_json,
    nothing_left,
    random_image,
    random_label,
    run,
    sentence,
    split_of,
    verify,
    voxels,
    write,
)

VALUES = [0, 205, 420, 500, 550, 600, 820, 850]


def mmwhs(folder: Path, cases: int = 4, **geometry: object) -> Path:
    """CT and MR; the third MR label has the slip of the original, 421 for 420."""
    for number in range(1, cases + 1):
        for kind, shift, dtype in (("ct", 0, np.int16), ("mr", 50, np.uint16)):
            path = folder / f"{kind}_train" / f"{kind}_train_{1000 + number}_image.nii.gz"
            write(path, random_image(number + shift, dtype), **geometry)
            path.with_name(f"._{path.name}").write_bytes(b"macOS")
            label = random_label(number + shift, VALUES)
            if (kind, number) == ("mr", 3):
                label[0, 0, :2] = 421
            write(path.with_name(path.name.replace("image", "label")), label.astype(np.int16), **geometry)
            test = folder / f"{kind}_test" / f"{kind}_test_{2000 + number}_image.nii.gz"
            write(test, random_image(number + shift + 100, dtype), **geometry)
    return folder


def check_mmwhs(source: Path, target: Path) -> None:
    def path_of(name: str, kind: str) -> Path:
        return next(source.glob(f"*/{name}_{kind}.nii.gz"))

    def label_of(name: str) -> np.ndarray:
        label = voxels(path_of(name, "label"))
        assert 421 not in label or name.startswith("mr_")
        label = np.where(label == 421, 420, label)
        assert set(np.unique(label)) <= set(VALUES)
        return np.searchsorted(VALUES, label)

    check_converted(target, lambda name: voxels(path_of(name, "image")), label_of)


def test_mmwhs(tmp_path, raw, monkeypatch):
    source = mmwhs(tmp_path / "source", **OBLIQUE)
    run("mmwhs.py", source, "--dataset-id", 30, "--labeled", 2, "--test", 1, "--modality", "mr", "--seed", 5)
    target = raw / "Dataset030_MMWHS_MR"
    split = split_of(target)
    assert {role: len(split[role]) for role in ("labeled", "unlabeled", "test")} == {"labeled": 2, "unlabeled": 1, "test": 1}
    check_mmwhs(source, target)
    assert_same_geometry(next((target / "imagesTr").iterdir()), OBLIQUE)
    assert_same_geometry(next((target / "labelsTs").iterdir()), OBLIQUE)
    verify(target, monkeypatch)


def test_mmwhs_both_modalities_and_test_images(tmp_path, raw):
    source = mmwhs(tmp_path / "source")
    run("mmwhs.py", source, "--dataset-id", 30, "--labeled", "all", "--modality", "both", "--use-test-images")
    target = raw / "Dataset030_MMWHS"
    split = split_of(target)
    assert split["labeled"] == [f"{kind}_train_100{number}" for kind in ("ct", "mr") for number in range(1, 5)]
    assert split["unlabeled"] == [f"{kind}_test_200{number}" for kind in ("ct", "mr") for number in range(1, 5)]
    check_mmwhs(source, target)
    content = dataset_json(target)
    assert content["labels"]["left ventricle"] == 3
    assert content["channel_names"] == {"0": "CT_or_MRI"}  # nnU-Net knows "CT" and takes z-scores for the rest
    run("mmwhs.py", source, "--dataset-id", 31, "--labeled", 4)
    assert dataset_json(raw / "Dataset031_MMWHS_CT")["channel_names"] == {"0": "CT"}


def test_mmwhs_complaints(tmp_path, raw, capsys):
    source = mmwhs(tmp_path / "source", cases=3)
    label = source / "ct_train" / "ct_train_1002_label.nii.gz"

    def complaint(*more: object) -> str:
        return sentence(capsys, "mmwhs.py", source, "--dataset-id", 7, "--labeled", 3, *more)

    assert "there are 3 cases" in sentence(capsys, "mmwhs.py", source, "--dataset-id", 7, "--labeled", 4)
    write(label, np.full(SHAPE, 421, np.int16))  # the slip is known of MR only
    assert "ct_train_1002_label.nii.gz holds the value 421" in complaint()
    assert "ct_train_1002_label.nii.gz holds the value 421" in complaint("--modality", "both", "--labeled", "all")
    write(label, np.full(SHAPE, 206, np.int16))
    assert "ct_train_1002_label.nii.gz holds the value 206" in complaint()
    label.unlink()
    assert "ct_train_1002 should have a label" in complaint()
    write(label, np.zeros(SHAPE, np.int16))
    label.with_name("ct_train_1002_image.nii.gz").unlink()
    assert "ct_train_1002_image.nii.gz does not exist" in complaint()
    shutil.copytree(source / "mr_train", source / "mr_train2")
    assert "Two cases are called mr_train_1001" in complaint("--modality", "mr")
    shutil.rmtree(source / "ct_train")
    assert "holds no ct_train_1001_image.nii.gz and the like" in complaint()
    shutil.rmtree(source / "mr_train2")
    shutil.rmtree(source / "mr_test")
    assert "no test images of this modality" in complaint("--modality", "mr", "--use-test-images")
    assert nothing_left(raw)


def test_fuzz_mmwhs(tmp_path, raw, capsys):
    source = mmwhs(tmp_path / "source", cases=3)
    for path in source.glob("*/._*"):
        path.unlink()
    command = ("mmwhs.py", "--dataset-id", 7, "--labeled", 2, "--test", 1, "--modality", "both", "--use-test-images")
    fuzz(capsys, source, raw, command, check_mmwhs)
