"""PROMISE12: cases in several folders, test cases of the same names."""

import shutil
from pathlib import Path

import numpy as np
from conversion_damage import fuzz
from conversion_helpers import (
    OBLIQUE,
    SHAPE,
    assert_same_geometry,
    check_converted,
    nothing_left,
    random_image,
    random_label,
    run,
    run_as_user,
    sentence,
    split_of,
    verify,
    voxels,
    write,
)


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

    check_converted(target, lambda name: voxels(path_of(name)), lambda name: voxels(path_of(name, "_segmentation")))


def test_promise12(tmp_path, raw, monkeypatch):
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


def test_both_parts_of_the_test_cases(tmp_path, raw):
    """As they are on Zenodo: both count from Case00, and have labels by now, which are not read."""
    source = promise12(tmp_path / "source")
    (source / "TestData").rename(source / "test_data")
    for number in range(2):
        case = source / "livechallenge_test_data" / f"Case{number:02d}.mhd"
        write(case, random_image(300 + number))
        write(case.with_name(f"{case.stem}_segmentation.mhd"), np.full(SHAPE, 7, np.uint8))
    run("promise12.py", source, "--dataset-id", 32, "--labeled", 35, "--use-test-images")
    target = raw / "Dataset032_PROMISE12"
    assert split_of(target)["unlabeled"] == ["LiveTest_Case00", "LiveTest_Case01", "Test_Case00", "Test_Case01"]
    for name, number in (("LiveTest_Case01", 301), ("Test_Case01", 201)):
        np.testing.assert_array_equal(voxels(target / "imagesUn" / f"{name}_0000.nii.gz"), random_image(number))


def test_promise12_complaints(tmp_path, raw, capsys):
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


def test_fuzz_promise12(tmp_path, raw, capsys):
    # few rounds, because the split needs all 50 cases
    source = promise12(tmp_path / "source")
    fuzz(capsys, source, raw, ("promise12.py", "--dataset-id", 7, "--labeled", 30), check_promise12, rounds=8)
