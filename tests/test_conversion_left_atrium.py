"""Left Atrium in both of its layouts, whole and broken."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SHARED
from conversion_helpers import (
    OBLIQUE,
    SHAPE,
    assert_same_geometry,
    files_of,
    image_of,
    needs_data,
    nothing_left,
    random_image,
    random_label,
    replace_in_h5,
    run,
    run_as_user,
    sentence,
    split_of,
    verify,
    voxels,
    write,
)
from conversion_sources import left_atrium, left_atrium_h5

import nnunet_caml.conversion


def test_left_atrium(tmp_path, raw, monkeypatch):
    source = left_atrium(tmp_path / "source", **OBLIQUE)
    done = run_as_user("left_atrium.py", source, "--dataset-id", 27, "--labeled", 2, "-np", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    target = raw / "Dataset027_LeftAtrium"
    train, test = ((source / name).read_text(encoding="utf-8").split() for name in ("train.list", "test.list"))
    assert split_of(target) == {
        "labeled": sorted(train[:2]),
        "unlabeled": sorted(train[2:]),
        "test": sorted(test),
        "seed": None,
        "command": "left_atrium.py source --dataset-id 27 --labeled 2",
        "version": nnunet_caml.__version__,
    }
    expected = {"dataset.json", "split.json"}
    for folder, names in (("Tr", train[:2]), ("Un", train[2:]), ("Ts", test)):
        for name in names:
            image = target / f"images{folder}" / f"{name}_0000.nii.gz"
            expected.add(f"images{folder}/{name}_0000.nii.gz")
            np.testing.assert_array_equal(voxels(image), voxels(source / name / "lgemri.nrrd"))
            assert voxels(image).dtype == np.uint8
            assert_same_geometry(image, OBLIQUE)
            if folder != "Un":
                label = target / f"labels{folder}" / f"{name}.nii.gz"
                expected.add(f"labels{folder}/{name}.nii.gz")
                np.testing.assert_array_equal(255 * voxels(label), voxels(source / name / "laendo.nrrd"))
                assert_same_geometry(label, OBLIQUE)
    assert set(files_of(target)) == expected
    assert "2 labelled, 3 unlabelled, 2 test cases" in done.stdout
    assert "nnUNetv2_plan_and_preprocess -d 27 -c 3d_fullres --verify_dataset_integrity" in done.stdout
    assert "nnUNetv2_train 27 3d_fullres all -tr nnUNetTrainerCAML" in done.stdout
    verify(target, monkeypatch)


def test_with_all_labels_the_next_command_is_that_of_plain_nnunet(tmp_path, raw, capsys):
    run("left_atrium.py", left_atrium(tmp_path / "source"), "--dataset-id", 27, "--labeled", 5)
    assert capsys.readouterr().out.endswith("  nnUNetv2_train 27 3d_fullres all\n")


def test_left_atrium_in_the_folders_of_the_download(tmp_path, raw):
    source = left_atrium(tmp_path / "source")
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("train.list", "test.list"):
        (source / name).rename(lists / name)
    for name in (lists / "train.list").read_text(encoding="utf-8").split():
        (source / "Training Set").mkdir(exist_ok=True)
        (source / name).rename(source / "Training Set" / name)
    run("left_atrium.py", source, "--dataset-id", 1, "--labeled", 5, "--lists", lists)
    split = split_of(raw / "Dataset001_LeftAtrium")
    assert len(split["labeled"]) == 5
    assert split["unlabeled"] == []
    assert not (raw / "Dataset001_LeftAtrium" / "imagesUn").exists()


def test_left_atrium_h5(tmp_path, raw, monkeypatch):
    source = left_atrium_h5(tmp_path / "source")
    done = run_as_user("left_atrium_h5.py", source, "--dataset-id", 28, "--labeled", 1, "-np", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    target = raw / "Dataset028_LeftAtrium"
    assert [split_of(target)[role] for role in ("labeled", "unlabeled", "test")] == [["A"], ["B", "C"], ["D"]]
    image = sitk.ReadImage(str(target / "imagesUn" / "B_0000.nii.gz"))
    assert image.GetSpacing() == (0.625,) * 3
    assert image.GetSize() == SHAPE[::-1]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), random_image(1).astype(np.float32) / 7 - 5)
    np.testing.assert_array_equal(voxels(target / "labelsTr" / "A.nii.gz"), random_label(0))
    np.testing.assert_array_equal(voxels(target / "labelsTs" / "D.nii.gz"), random_label(3))
    assert [path.name for path in sorted((target / "labelsTr").iterdir())] == ["A.nii.gz"]
    verify(target, monkeypatch)


def test_left_atrium_unlabeled_from_another_download(tmp_path, raw):
    source = left_atrium(tmp_path / "source", cases=3)
    write(tmp_path / "more" / "Z1" / "lgemri.nrrd", random_image(9))
    write(tmp_path / "more" / "Z1" / "laendo.nrrd", random_label(9).astype(np.uint8))
    run("left_atrium.py", source, "--dataset-id", 7, "--labeled", 3, "--unlabeled-from", tmp_path / "more")
    assert split_of(raw / "Dataset007_LeftAtrium")["unlabeled"] == ["Z1"]


@needs_data("left_atrium")
@needs_data("left_atrium_h5")
def test_both_left_atrium_layouts_agree_on_real_data(tmp_path, raw, monkeypatch):
    pytest.importorskip("h5py")
    lists = SHARED / "data" / "left_atrium_h5"
    run("left_atrium_h5.py", lists, "--dataset-id", 28, "--labeled", 4)
    run("left_atrium.py", SHARED / "data" / "left_atrium", "--lists", lists, "--dataset-id", 27, "--labeled", 4)
    h5, nrrd = raw / "Dataset028_LeftAtrium", raw / "Dataset027_LeftAtrium"
    verify(h5, monkeypatch)
    verify(nrrd, monkeypatch)
    images = sorted(path.relative_to(h5) for path in h5.glob("images*/*"))
    labels = sorted(path.relative_to(h5) for path in h5.glob("labels*/*"))
    assert (len(images), len(labels)) == (6, 6)
    for path in labels:
        np.testing.assert_array_equal(voxels(h5 / path), voxels(nrrd / path))
    for path in images:
        normalised, intensity = voxels(h5 / path), voxels(nrrd / path)
        assert (normalised.dtype, intensity.dtype) == (np.float32, np.uint8)
        slope, offset = np.polyfit(intensity.ravel()[::97], normalised.ravel()[::97], 1)
        assert slope > 0
        np.testing.assert_allclose(slope * intensity + offset, normalised, atol=1e-3)
        assert sitk.ReadImage(str(nrrd / path)).GetSpacing() == (0.625,) * 3


def broken_left_atrium(kind: str, source: Path) -> None:
    """Breaks the first case of ``train.list``."""
    name = (source / "train.list").read_text(encoding="utf-8").split()[0]
    image, label = source / name / "lgemri.nrrd", source / name / "laendo.nrrd"
    if kind == "missing case":
        shutil.rmtree(source / name)
    elif kind == "missing label":
        label.unlink()
    elif kind == "empty":
        image.write_bytes(b"")
    elif kind == "truncated":
        image.write_bytes(image.read_bytes()[:-20])
    elif kind == "garbage":
        label.write_bytes(b"NRRD no more\n" * 9)
    elif kind == "other shape":
        write(label, np.zeros((5, 6, 8), np.uint8))
    elif kind == "other place":
        write(label, np.zeros((5, 6, 7), np.uint8), origin=(0, 0, 0.5))
    elif kind == "mirrored":
        write(label, np.zeros((5, 6, 7), np.uint8), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    elif kind == "value":
        write(label, np.full((5, 6, 7), 254, np.uint8))
    elif kind == "nan":
        write(image, np.where(np.arange(210).reshape(5, 6, 7) == 77, np.nan, 1).astype(np.float32))
    elif kind == "infinite":
        write(image, np.full((5, 6, 7), np.inf, np.float32))
    elif kind == "too many channels":
        sitk.WriteImage(sitk.JoinSeries([image_of(random_image(0))] * 2), str(image))
    elif kind == "twice in list":
        (source / "train.list").write_text(f"{name}\n{name}\n", encoding="utf-8")
    elif kind == "in both lists":
        (source / "test.list").write_text(name, encoding="utf-8")
    elif kind == "no list":
        (source / "train.list").unlink()
    elif kind == "empty list":
        (source / "test.list").write_text("\n\n", encoding="utf-8")
    else:
        raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing case", ["laendo.nrrd does not exist", "--skip-broken"]),
        ("missing label", ["laendo.nrrd does not exist", "should have a label"]),
        ("empty", ["lgemri.nrrd is empty", "download"]),
        ("truncated", ["lgemri.nrrd", "truncated or damaged"]),
        ("garbage", ["laendo.nrrd", "not a readable image"]),
        ("other shape", ["lgemri.nrrd has shape (7, 6, 5)", "laendo.nrrd has (8, 6, 5)"]),
        ("other place", ["lgemri.nrrd and", "laendo.nrrd do not lie in the same place", "0.5 voxels"]),
        ("mirrored", ["laendo.nrrd do not lie in the same place"]),
        ("value", ["laendo.nrrd holds the value 254", "[0, 255]"]),
        ("nan", ["lgemri.nrrd has voxels that are NaN"]),
        ("infinite", ["lgemri.nrrd has voxels that are NaN or infinite"]),
        ("too many channels", ["lgemri.nrrd", "2 channels", "has 1 (MRI)"]),
        ("twice in list", ["train.list names", "more than once"]),
        ("in both lists", ["is named twice, perhaps as a test case as well"]),
        ("no list", ["train.list does not exist", "--lists"]),
        ("empty list", ["test.list names no case"]),
    ],
)
def test_broken_left_atrium(tmp_path, raw, capsys, kind, words):
    source = left_atrium(tmp_path / "source", cases=3, tests=1)
    broken_left_atrium(kind, source)
    complaint = sentence(capsys, "left_atrium.py", source, "--dataset-id", 7, "--labeled", 2)
    assert all(word in complaint for word in words), complaint
    assert nothing_left(raw)


def test_sentence_as_a_user_sees_it(tmp_path, raw):
    source = left_atrium(tmp_path / "source", cases=3, tests=1)
    broken_left_atrium("other shape", source)
    done = run_as_user("left_atrium.py", source, "--dataset-id", 7, "--labeled", 2, "-np", 2, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "laendo.nrrd" in done.stderr
    assert nothing_left(raw)


def test_broken_h5(tmp_path, raw, capsys):
    source = left_atrium_h5(tmp_path / "source")
    path = source / "2018LA_Seg_Training Set" / "A" / "mri_norm2.h5"
    content = path.read_bytes()

    def complaint() -> str:
        return sentence(capsys, "left_atrium_h5.py", source, "--dataset-id", 7, "--labeled", 2)

    path.write_bytes(content[: len(content) // 2])
    assert "mri_norm2.h5 is not a readable HDF5 file" in complaint()
    path.write_bytes(content)
    replace_in_h5(path, "label", None)
    assert "should hold an array 'label' of three axes but holds {'image': (7, 6, 5)}" in complaint()
    replace_in_h5(path, "label", np.full((7, 6, 5), 3))
    assert "mri_norm2.h5 holds the value 3 where a label of [0, 1] is expected" in complaint()
    path.unlink()
    assert "A/mri_norm2.h5 does not exist" in complaint()
    assert nothing_left(raw)
