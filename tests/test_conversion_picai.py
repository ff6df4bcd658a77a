"""PI-CAI: several studies of a patient, and channels on coarser grids."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_damage import fuzz
from conversion_helpers import (
    OBLIQUE,
    ROLES,
    SHAPE,
    assert_same_geometry,
    dataset_json,
    nothing_left,
    patients_of,
    random_image,
    random_label,
    run,
    sentence,
    split_of,
    verify,
    voxels,
    write,
)

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


def more_studies(folder: Path) -> Path:
    picai(folder, labels=0)
    for path in sorted(folder.glob("*/*.mha")):
        target = folder / f"2{path.parent.name[1:]}" / f"2{path.name[1:]}"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    return folder


def test_picai(tmp_path, raw, monkeypatch):
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
    assert dataset_json(target)["channel_names"] == {
        "0": "T2W",
        "1": "ADC",
        "2": "HBV",
    }
    verify(target, monkeypatch)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_picai_draws_patients(tmp_path, raw, seed):
    source = picai(tmp_path / "images")
    shutil.move(source / "csPCa_lesion_delineations", tmp_path / "labels" / "csPCa_lesion_delineations")
    arguments = ("--labels", tmp_path / "labels", "--labeled", 1, "--test", 1, "--seed", seed)
    run("picai.py", source, "--dataset-id", 7, *arguments)
    split = split_of(raw / "Dataset007_PICAI")
    patients = {role: patients_of(split[role]) for _, role in ROLES}
    assert len(patients["labeled"]) == 1
    assert len(patients["test"]) == 1
    assert sum(map(len, patients.values())) == 4


def test_picai_leaves_out_what_a_test_patient_has_without_a_label(tmp_path, raw, capsys):
    """nnU-Net's evaluation ends with an error where a prediction has no label."""
    source = picai(tmp_path / "images", labels=2)  # of patient 10001 the first of two studies
    labelled = tmp_path / "labelled.txt"
    labelled.write_text("10000_1000000\n", encoding="utf-8")
    run("picai.py", source, "--dataset-id", 7, "--labeled-cases", labelled, "--test", 1)
    target = raw / "Dataset007_PICAI"
    split = split_of(target)
    assert split["test"] == ["10001_1000001"]
    assert split["unlabeled"] == ["10002_1000003", "10003_1000004"]
    assert split["left_out"] == ["10001_1000002"]
    assert not list(target.rglob("10001_1000002*"))
    assert "left out 10001_1000002: it has no label, and its patient is held out for testing" in capsys.readouterr().out


def test_picai_in_other_folders(tmp_path, raw):
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


def test_picai_of_which_a_part_is_not_there_yet(tmp_path, raw, capsys):
    """The images come in five archives."""
    source = picai(tmp_path / "source")
    deep = source / "images" / "public" / "fold0"
    deep.mkdir(parents=True)
    for patient in ("10000", "10001"):
        shutil.move(source / patient, deep / patient)
    run("picai.py", source, "--dataset-id", 7)
    assert split_of(raw / "Dataset007_PICAI")["labeled"] == ["_".join(study) for study in STUDIES[:4]]
    capsys.readouterr()
    with zipfile.ZipFile(source / "fold2.zip", "w") as archive:
        for file in sorted((source / "10002").iterdir()):
            archive.write(file, f"10002/{file.name}")
            file.unlink()
    assert "fold2.zip holds 10002_1000003_adc.mha, which is not among the unpacked files" in sentence(
        capsys, "picai.py", source, "--dataset-id", 8
    )
    (source / "fold2.zip").unlink()
    run("picai.py", source, "--dataset-id", 8)
    assert "1 label belongs to no image in" in (said := capsys.readouterr().err)
    assert "10002_1000003" in said


def test_picai_complaints(tmp_path, raw, capsys):
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


def test_fuzz_picai(tmp_path, raw, capsys):
    source = picai(tmp_path / "source", labels=5)
    for path in source.glob("*/*_sag.mha"):
        path.unlink()
    fuzz(capsys, source, raw, ("picai.py", "--dataset-id", 7, "--labeled", 3, "--test", 1), check_picai)
