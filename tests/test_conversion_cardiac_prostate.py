"""MM-WHS, PROMISE12 and PI-CAI: each layout written small, converted, read back, broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_conversion_acdc import fuzz
from test_conversion_errors import nothing_left, sentence
from test_conversion_layouts import (
    OBLIQUE,
    SHAPE,
    assert_same_geometry,
    random_image,
    random_label,
    raw,  # noqa: F401
    run,
    run_as_user,
    split_of,
    verify,
    voxels,
    write,
)

ROLES = (("Tr", "labeled"), ("Un", "unlabeled"), ("Ts", "test"))
VALUES = [0, 205, 420, 500, 550, 600, 820, 850]


def check(target: Path, image_of: Callable[[str], np.ndarray], label_of: Callable[[str], np.ndarray]) -> None:
    """Every file in the data set is what the source holds."""
    split = split_of(target)
    for folder, role in ROLES:
        for name in split[role]:
            written, expected = voxels(target / f"images{folder}" / f"{name}_0000.nii.gz"), image_of(name)
            assert written.dtype == expected.dtype
            np.testing.assert_array_equal(written, expected)
            label = target / f"labels{folder}" / f"{name}.nii.gz"
            assert label.exists() == (role != "unlabeled")
            if label.exists():
                np.testing.assert_array_equal(voxels(label), label_of(name))
    files = [path for folder, _ in ROLES for path in (target / f"images{folder}").glob("*")]
    assert len(files) == sum(len(split[role]) for _, role in ROLES)


# ---------------------------------------------------------------------------------------------------------------- MM-WHS


def mmwhs(folder: Path, cases: int = 4, **geometry: object) -> Path:
    """CT and MR; the third MR label has the slip."""
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

    check(target, lambda name: voxels(path_of(name, "image")), label_of)


def test_mmwhs(tmp_path, raw, monkeypatch):  # noqa: F811
    source = mmwhs(tmp_path / "source", **OBLIQUE)
    run("mmwhs.py", source, "--dataset-id", 30, "--labeled", 2, "--test", 1, "--modality", "mr", "--seed", 5)
    target = raw / "Dataset030_MMWHS_MR"
    split = split_of(target)
    assert {role: len(split[role]) for role in ("labeled", "unlabeled", "test")} == {"labeled": 2, "unlabeled": 1, "test": 1}
    check_mmwhs(source, target)
    assert_same_geometry(next((target / "imagesTr").iterdir()), OBLIQUE)
    assert_same_geometry(next((target / "labelsTs").iterdir()), OBLIQUE)
    verify(target, monkeypatch)


def test_mmwhs_both_modalities_and_test_images(tmp_path, raw):  # noqa: F811
    source = mmwhs(tmp_path / "source")
    run("mmwhs.py", source, "--dataset-id", 30, "--labeled", "all", "--modality", "both", "--use-test-images")
    target = raw / "Dataset030_MMWHS"
    split = split_of(target)
    assert split["labeled"] == [f"{kind}_train_100{number}" for kind in ("ct", "mr") for number in range(1, 5)]
    assert split["unlabeled"] == [f"{kind}_test_200{number}" for kind in ("ct", "mr") for number in range(1, 5)]
    check_mmwhs(source, target)
    content = json.loads((target / "dataset.json").read_text())
    assert content["labels"]["left ventricle"] == 3
    assert content["channel_names"] == {"0": "CT_or_MRI"}  # nnU-Net knows "CT" and takes z-scores for the rest
    run("mmwhs.py", source, "--dataset-id", 31, "--labeled", 4)
    assert json.loads((raw / "Dataset031_MMWHS_CT" / "dataset.json").read_text())["channel_names"] == {"0": "CT"}


def test_mmwhs_complaints(tmp_path, raw, capsys):  # noqa: F811
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


def test_fuzz_mmwhs(tmp_path, raw, capsys):  # noqa: F811
    source = mmwhs(tmp_path / "source", cases=3)
    for path in source.glob("*/._*"):
        path.unlink()
    command = ("mmwhs.py", "--dataset-id", 7, "--labeled", 2, "--test", 1, "--modality", "both", "--use-test-images")
    fuzz(capsys, source, raw, command, check_mmwhs)


# ------------------------------------------------------------------------------------------------------------- PROMISE12


def promise12(folder: Path, **geometry: object) -> Path:
    """All 50 training cases in three folders, and two of the challenge's test cases, which have the same names."""
    for number in range(50):
        part = folder / f"TrainingData_Part{number // 20 + 1}"
        write(part / f"Case{number:02d}.mhd", random_image(number), **geometry)
        write(part / f"Case{number:02d}_segmentation.mhd", random_label(number).astype(np.int8), **geometry)
    for number in range(2):
        write(folder / "TestData" / f"Case{number:02d}.mhd", random_image(200 + number), **geometry)
    return folder


def check_promise12(source: Path, target: Path) -> None:
    def path_of(name: str, ending: str = "") -> Path:
        folder = "TestData" if name.startswith("Test_") else "Training*"
        return next(source.glob(f"{folder}/{name.removeprefix('Test_')}{ending}.mhd"))

    check(target, lambda name: voxels(path_of(name)), lambda name: voxels(path_of(name, "_segmentation")))


def test_promise12(tmp_path, raw, monkeypatch):  # noqa: F811
    source = promise12(tmp_path / "source", **OBLIQUE)
    done = run_as_user("promise12.py", source, "--dataset-id", 32, "-np", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    target = raw / "Dataset032_PROMISE12"
    split = split_of(target)
    assert split["test"] == [f"Case{number}" for number in range(40, 50)]
    assert sorted(split["labeled"] + split["unlabeled"]) == [f"Case{number:02d}" for number in range(35)]
    assert len(split["labeled"]) == 7
    assert split["seed"] == 0
    check_promise12(source, target)
    assert_same_geometry(target / "imagesTs" / "Case44_0000.nii.gz", OBLIQUE)
    assert_same_geometry(next((target / "labelsTr").iterdir()), OBLIQUE)
    verify(target, monkeypatch)
    arguments = ("--use-validation-images", "--use-test-images", "--labeled", 35, "--unlabeled-from", source / "TestData")
    run("promise12.py", source, "--dataset-id", 33, *arguments)
    unlabeled = split_of(raw / "Dataset033_PROMISE12")["unlabeled"]
    assert {"Case35", "Case39", "Test_Case00", "Test_Case01", "Unlabeled_Case00"} < set(unlabeled)
    assert len(unlabeled) == 9


def test_promise12_complaints(tmp_path, raw, capsys):  # noqa: F811
    source = promise12(tmp_path / "source")
    first = source / "TrainingData_Part1" / "Case00.mhd"

    def complaint(*more: object) -> str:
        return sentence(capsys, "promise12.py", source, "--dataset-id", 7, *more)

    assert "--labeled 36 is not possible" in complaint("--labeled", 36)
    data = first.with_suffix(".zraw") if first.with_suffix(".zraw").exists() else first.with_suffix(".raw")
    data.rename(tmp_path / data.name)
    assert f"Case00.mhd needs the file {data.name} beside it" in complaint()
    (tmp_path / data.name).rename(data)
    write(first.with_name("Case00_segmentation.mhd"), np.full(SHAPE, 2, np.uint8))
    assert "Case00_segmentation.mhd holds the value 2" in complaint("--labeled", "all")
    write(first.with_name("Case00_segmentation.mhd"), np.zeros(SHAPE, np.uint8), spacing=(1, 1, 2))
    assert "do not lie in the same place" in complaint("--labeled", "all")
    first.with_name("Case00_segmentation.mhd").unlink()
    assert "Case00_segmentation.mhd does not exist" in complaint("--labeled", "all")
    shutil.copy(first, source / "Case00.mhd")
    assert "Two cases are called Case00" in complaint()
    (source / "Case00.mhd").rename(source / "Case50.mhd")
    assert "Case50.mhd is none of the cases 00 to 49" in complaint()
    (source / "Case50.mhd").unlink()
    first.unlink()
    assert "Case00_segmentation.mhd does not exist, but Case00 should have a label" in complaint("--labeled", "all")
    shutil.rmtree(source / "TestData")
    assert "leave out --use-test-images" in complaint("--use-test-images")
    shutil.rmtree(source)
    source.mkdir()
    assert "holds no file CaseNN.mhd" in complaint()
    assert nothing_left(raw)


def test_fuzz_promise12(tmp_path, raw, capsys):  # noqa: F811
    # few rounds, because the split needs all 50 cases
    source = promise12(tmp_path / "source")
    fuzz(capsys, source, raw, ("promise12.py", "--dataset-id", 7, "--labeled", 30), check_promise12, rounds=8)


# ---------------------------------------------------------------------------------------------------------------- PI-CAI

COARSE = (3, 4, 5)  # z, y, x of adc and hbv
STUDIES = [("10000", "1000000"), ("10001", "1000001"), ("10001", "1000002"), ("10002", "1000003"), ("10003", "1000004")]


def picai(folder: Path, labels: int = 4, **geometry: object) -> Path:
    """Five studies of four patients; adc and hbv are coarser and the last study has no label."""
    near = {**geometry, "spacing": tuple(1.3 * value for value in geometry.get("spacing", (1, 1, 1)))}  # type: ignore[attr-defined]
    for number, (patient, study) in enumerate(STUDIES):
        case = folder / patient / f"{patient}_{study}"
        write(case.with_name(f"{case.name}_t2w.mha"), random_image(number, np.uint16), **geometry)
        coarse = np.random.default_rng(number).integers(0, 3000, COARSE)
        write(case.with_name(f"{case.name}_adc.mha"), coarse.astype(np.int16), **near)
        write(case.with_name(f"{case.name}_hbv.mha"), (coarse / 7).astype(np.float32), **near)
        write(case.with_name(f"{case.name}_sag.mha"), random_image(99), **geometry)  # which nobody asked for
        if number < labels:
            path = folder / "csPCa_lesion_delineations" / "human_expert" / "resampled" / f"{case.name}.nii.gz"
            write(path, random_label(number, [0, 2, 3, 5]).astype(np.uint8), **geometry)
    return folder


def linear(image: sitk.Image, grid: sitk.Image) -> np.ndarray:
    """Linear interpolation voxel by voxel, 0 outside; rounded for integers."""
    array = sitk.GetArrayFromImage(image)
    result = np.zeros(grid.GetSize()[::-1], np.float64)
    for z, y, x in np.ndindex(result.shape):
        index = image.TransformPhysicalPointToContinuousIndex(grid.TransformIndexToPhysicalPoint((x, y, z)))[::-1]
        if any(not -0.5 <= i < size - 0.5 for i, size in zip(index, array.shape, strict=True)):
            continue
        value = array.astype(np.float64)
        for i in index:
            i = np.clip(i, 0, len(value) - 1)
            low = min(int(np.floor(i)), len(value) - 1)
            high = min(low + 1, len(value) - 1)
            value = value[low] * (1 - (i - low)) + value[high] * (i - low)
        result[z, y, x] = value
    return np.floor(result + 0.5).astype(array.dtype) if array.dtype.kind in "iu" else result.astype(array.dtype)


def check_picai(source: Path, target: Path) -> None:
    """Every file is what the source holds; adc and hbv within what the order of the additions does to the last bit."""
    split = split_of(target)
    for folder, role in ROLES:
        for name in split[role]:
            t2w = sitk.ReadImage(str(source / name.partition("_")[0] / f"{name}_t2w.mha"))
            np.testing.assert_array_equal(
                voxels(target / f"images{folder}" / f"{name}_0000.nii.gz"), sitk.GetArrayFromImage(t2w)
            )
            for channel, kind in ((1, "adc"), (2, "hbv")):
                image = sitk.ReadImage(str(source / name.partition("_")[0] / f"{name}_{kind}.mha"))
                written = voxels(target / f"images{folder}" / f"{name}_{channel:04d}.nii.gz")
                assert written.dtype == sitk.GetArrayFromImage(image).dtype
                expected = linear(image, t2w)
                tolerance = 1 if written.dtype.kind in "iu" else 1e-2
                np.testing.assert_allclose(written.astype(float), expected.astype(float), rtol=0, atol=tolerance)
                assert np.mean(written == expected) > (0.98 if written.dtype.kind in "iu" else 0)
            if role != "unlabeled":
                path = next(iter(source.rglob(f"{name}.nii.gz")), None)
                label = target / f"labels{folder}" / f"{name}.nii.gz"
                assert label.exists() == (path is not None)
                if path is not None:
                    np.testing.assert_array_equal(voxels(label), voxels(path) > 0)


def test_picai(tmp_path, raw, monkeypatch):  # noqa: F811
    source = picai(tmp_path / "source", **OBLIQUE)
    run("picai.py", source, "--dataset-id", 34)
    target = raw / "Dataset034_PICAI"
    split = split_of(target)
    assert split["labeled"] == ["_".join(study) for study in STUDIES[:4]]
    assert split["unlabeled"] == ["_".join(STUDIES[4])]
    check_picai(source, target)
    for channel in range(3):
        assert_same_geometry(target / "imagesTr" / f"10000_1000000_{channel:04d}.nii.gz", OBLIQUE)
    assert_same_geometry(target / "labelsTr" / "10000_1000000.nii.gz", OBLIQUE)
    # some voxels lie in the coarse image and some beside it
    outside = voxels(target / "imagesTr" / "10000_1000000_0001.nii.gz") == 0
    assert 0.02 < outside.mean() < 0.9
    assert json.loads((target / "dataset.json").read_text())["channel_names"] == {"0": "T2W", "1": "ADC", "2": "HBV"}
    verify(target, monkeypatch)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_picai_draws_patients(tmp_path, raw, seed):  # noqa: F811
    source = picai(tmp_path / "images")
    shutil.move(source / "csPCa_lesion_delineations", tmp_path / "labels" / "csPCa_lesion_delineations")
    arguments = ("--labels", tmp_path / "labels", "--labeled", 1, "--test", 1, "--seed", seed)
    run("picai.py", source, "--dataset-id", 7, *arguments)
    split = split_of(raw / "Dataset007_PICAI")
    patients = {role: {name.partition("_")[0] for name in split[role]} for role in ("labeled", "unlabeled", "test")}
    assert len(patients["labeled"]) == 1
    assert len(patients["test"]) == 1
    assert sum(map(len, patients.values())) == 4


def test_picai_in_other_folders(tmp_path, raw):  # noqa: F811
    source = picai(tmp_path / "source")
    (source / "fold0").mkdir()
    for patient in ("10000", "10001"):
        shutil.move(source / patient, source / "fold0" / patient)
    labels = tmp_path / "only"
    shutil.move(source / "csPCa_lesion_delineations" / "human_expert" / "resampled", labels)
    same = source / "10003" / "10003_1000004_adc.mha"  # which lies on the grid of t2w already
    write(same, random_image(77))
    run("picai.py", source, "--dataset-id", 7, "--labels", labels)
    target = raw / "Dataset007_PICAI"
    np.testing.assert_array_equal(voxels(target / "imagesUn" / "10003_1000004_0001.nii.gz"), random_image(77))
    assert len(list((target / "imagesTr").iterdir())) == 12
    run("picai.py", source, "--dataset-id", 8, "--labels", labels, "--unlabeled-from", more_studies(tmp_path / "more"))
    unlabeled = split_of(raw / "Dataset008_PICAI")["unlabeled"]
    assert "20000_1000000" in unlabeled
    assert len(unlabeled) == 6


def more_studies(folder: Path) -> Path:
    picai(folder, labels=0)
    for path in sorted(folder.glob("*/*.mha")):
        target = folder / f"2{path.parent.name[1:]}" / f"2{path.name[1:]}"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    return folder


def test_picai_complaints(tmp_path, raw, capsys):  # noqa: F811
    source = picai(tmp_path / "source")
    adc = source / "10001" / "10001_1000002_adc.mha"
    label = source / "csPCa_lesion_delineations" / "human_expert" / "resampled" / "10001_1000002.nii.gz"

    def complaint(*more: object) -> str:
        return sentence(capsys, "picai.py", source, "--dataset-id", 7, *more)

    write(adc, np.zeros(COARSE, np.int16), origin=(500, 0, 0))
    assert "adc.mha does not show the middle of 10001_1000002_t2w.mha" in complaint()
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.int16)), str(adc))
    assert "adc.mha has shape (5, 4)" in complaint()
    adc.unlink()
    assert "10001_1000002_adc.mha does not exist" in complaint()
    run("picai.py", source, "--dataset-id", 8, "--skip-broken")
    assert split_of(raw / "Dataset008_PICAI")["left_out"] == ["10001_1000002"]
    shutil.rmtree(raw)
    write(adc, np.zeros(COARSE, np.int16))
    write(label, np.full(SHAPE, 6, np.uint8))
    assert "10001_1000002.nii.gz holds the value 6" in complaint()
    write(label, np.zeros((5, 6, 8), np.uint8))
    assert "t2w.mha has shape (7, 6, 5)" in complaint()
    label.unlink()
    (source / "10001" / "10001_1000002_t2w.mha").unlink()
    assert "10001_1000002_t2w.mha does not exist" in complaint()
    for path in label.parent.iterdir():
        path.rename(path.with_name(f"3{path.name[1:]}"))
    assert "None of the labels beside" in complaint()
    shutil.rmtree(label.parent)
    assert "say with --labels where it is" in complaint()
    assert "say with --labels where it is" in complaint("--labels", tmp_path / "nowhere")
    for patient in {patient for patient, _ in STUDIES}:
        shutil.rmtree(source / patient)
    write(label, np.zeros(SHAPE, np.uint8))
    assert "holds no <patient>/<patient>_<study>_t2w.mha" in complaint()
    assert nothing_left(raw)


def test_fuzz_picai(tmp_path, raw, capsys):  # noqa: F811
    source = picai(tmp_path / "source", labels=5)
    for path in source.glob("*/*_sag.mha"):
        path.unlink()
    fuzz(capsys, source, raw, ("picai.py", "--dataset-id", 7, "--labeled", 3, "--test", 1), check_picai)
