"""Pancreas-CT as DICOM series, and as the literature's h5 files: layouts, lists, broken files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_damage import fuzz_h5
from conversion_helpers import (
    dataset_json,
    image_of,
    imported,
    nothing_left,
    run,
    run_as_user,
    sentence,
    split_of,
    verify,
    voxels,
    write,
)
from conversion_pancreas import GEOMETRY, lists, organ, pancreas_ct, pancreas_h5, scan, write_series


def test_pancreas_ct(tmp_path, raw, monkeypatch):
    source = pancreas_ct(tmp_path / "source")
    arguments = (source, "--dataset-id", 61, "--labeled", 1, "--lists", lists(tmp_path / "lists"), "--preview", "-np", 2)
    done = run_as_user("pancreas_ct.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    target = raw / "Dataset061_PancreasCT"
    split = split_of(target)
    assert split["labeled"] == ["PANCREAS_0057"]
    assert split["unlabeled"] == ["PANCREAS_0018", "PANCREAS_0062"]
    assert split["test"] == ["PANCREAS_0050"]
    assert split["seed"] is None
    for role, folder in (("labeled", "Tr"), ("unlabeled", "Un"), ("test", "Ts")):
        for name in split[role]:
            image = sitk.ReadImage(str(target / f"images{folder}" / f"{name}_0000.nii.gz"))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan(int(name[-4:])))
            assert image.GetPixelID() == sitk.sitkInt16
            np.testing.assert_allclose(image.GetSpacing(), GEOMETRY["spacing"], atol=1e-6)
            np.testing.assert_allclose(image.GetOrigin(), GEOMETRY["origin"], atol=1e-6)
            label = target / f"labels{folder}" / f"{name}.nii.gz"
            assert label.exists() == (folder != "Un")
            if label.exists():
                np.testing.assert_array_equal(voxels(label), organ())
                np.testing.assert_allclose(sitk.ReadImage(str(label)).GetOrigin(), GEOMETRY["origin"], atol=1e-6)
    assert b"Doe" not in b"".join(path.read_bytes() for path in target.rglob("*.json"))
    assert dataset_json(target)["channel_names"] == {"0": "CT"}
    verify(target, monkeypatch)


def test_built_in_lists(tmp_path, raw, capsys):
    with imported("pancreas_ct") as script:
        assert (len(script.TRAIN), len(script.TEST)) == (62, 20)
        assert sorted(script.TRAIN + script.TEST) == list(range(1, 83))
    source = pancreas_ct(tmp_path / "source")
    complaint = sentence(capsys, "pancreas_ct.py", source, "--dataset-id", 61, "--labeled", 6, "-np", 1)
    assert "label0031.nii.gz does not exist" in complaint
    assert nothing_left(raw)
    # three of the training cases and one of the test cases are there
    run("pancreas_ct.py", source, "--dataset-id", 61, "--labeled", 2, "--skip-broken")
    split = split_of(raw / "Dataset061_PancreasCT")
    assert [split[role] for role in ("labeled", "unlabeled", "test")] == [
        ["PANCREAS_0018", "PANCREAS_0057"],
        ["PANCREAS_0062"],
        ["PANCREAS_0050"],
    ]
    assert len(split["left_out"]) == 82 - 4 - 2
    assert "PANCREAS_0025 is left out: the archive has withdrawn it." in capsys.readouterr().out


def test_withdrawn_cases_count_where_they_are_there(tmp_path, raw):
    source = pancreas_ct(tmp_path / "source", (70, 18))
    run("pancreas_ct.py", source, "--dataset-id", 61, "--labeled", 1, "--lists", lists(tmp_path / "l", (70,), (18,)))
    assert split_of(raw / "Dataset061_PancreasCT")["labeled"] == ["PANCREAS_0070"]


def test_empty_folders_of_withdrawn_cases(tmp_path, raw, capsys):
    source = pancreas_ct(tmp_path / "source", (18, 62))
    for number in (25, 70):
        (source / f"PANCREAS_{number:04d}" / "study").mkdir(parents=True)
    arguments = ("--labeled", 1, "--lists", lists(tmp_path / "l", (70, 18), (25, 62)))
    run("pancreas_ct.py", source, "--dataset-id", 61, *arguments)
    split = split_of(raw / "Dataset061_PancreasCT")
    assert (split["labeled"], split["test"]) == (["PANCREAS_0018"], ["PANCREAS_0062"])
    said = capsys.readouterr().out
    assert "PANCREAS_0070 is left out: the archive has withdrawn it; if it should have been labelled" in said
    assert "PANCREAS_0025 is left out: the archive has withdrawn it." in said


def test_pancreas_h5(tmp_path, raw, monkeypatch):
    source = pancreas_h5(tmp_path / "source")
    run("pancreas_h5.py", source, "--dataset-id", 62, "--labeled", 2, "--preview")
    target = raw / "Dataset062_Pancreas"
    split = split_of(target)
    assert split["labeled"] == ["image0018", "image0057"]
    assert split["unlabeled"] == ["image0062"]
    assert split["test"] == ["image0050"]
    image = sitk.ReadImage(str(target / "imagesUn" / "image0062_0000.nii.gz"))
    assert image.GetSpacing() == (1, 1, 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan(62).astype(np.float32) / 7)
    np.testing.assert_array_equal(voxels(target / "labelsTr" / "image0018.nii.gz"), organ())
    assert voxels(target / "labelsTr" / "image0018.nii.gz").dtype == np.uint8
    verify(target, monkeypatch)


def test_unlabeled_from(tmp_path, raw):
    source = pancreas_ct(tmp_path / "source")
    write_series(tmp_path / "more" / "A" / "study", scan(1))
    arguments = ("--dataset-id", 61, "--labeled", 3, "--lists", lists(tmp_path / "lists"), "--unlabeled-from")
    run("pancreas_ct.py", source, *arguments, tmp_path / "more")
    assert split_of(raw / "Dataset061_PancreasCT")["unlabeled"] == ["A"]
    write(tmp_path / "images" / "B.nii.gz", scan(2))
    run("pancreas_ct.py", source, *arguments, tmp_path / "images", "--overwrite")
    assert split_of(raw / "Dataset061_PancreasCT")["unlabeled"] == ["B"]
    h5 = pancreas_h5(tmp_path / "h5")
    more = pancreas_h5(tmp_path / "more_h5") / "Pancreas_h5"
    for path in more.iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    run("pancreas_h5.py", h5, "--dataset-id", 62, "--labeled", 3, "--unlabeled-from", more)
    assert len(split_of(raw / "Dataset062_Pancreas")["unlabeled"]) == 4


def break_series(kind: str, folder: Path) -> None:
    files = sorted(folder.rglob("*.dcm"))
    middle = files[len(files) // 2]
    if kind == "missing slice":
        middle.unlink()
    elif kind == "truncated":
        middle.write_bytes(middle.read_bytes()[:-1])
    elif kind == "empty":
        middle.write_bytes(b"")
    elif kind == "garbage":
        middle.write_bytes(b"DICM" * 100)
    elif kind == "all garbage":
        for path in files:
            path.write_bytes(b"DICM" * 100)
    elif kind == "slice there twice":
        shutil.copy(middle, middle.with_name("copy.dcm"))
    elif kind == "two series":
        write_series(files[0].parent / "other", scan(9), 9)
        for path in (files[0].parent / "other").iterdir():
            path.rename(files[0].with_name(f"2-{path.name}"))
    elif kind == "two folders":
        write_series(folder / "other", scan(9), 9)
    elif kind == "no files":
        shutil.rmtree(folder)
        folder.mkdir()
    elif kind == "another shape":
        write_series(folder / "other", scan(9)[:, :, :-1], 57)
        (folder / "other" / "1-004.dcm").rename(next(path for path in files if path.name == "1-004.dcm"))
        shutil.rmtree(folder / "other")
    elif kind == "one slice":
        for path in files[1:]:
            path.unlink()
    else:
        raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing slice", "2.5 mm apart, but most slices 1.25 mm: a slice is missing"),
        ("truncated", "1-005.dcm is not a readable DICOM image"),
        ("empty", "1-005.dcm is not a readable DICOM image"),
        ("garbage", "1-005.dcm is not a readable DICOM image"),
        ("all garbage", "holds 0 DICOM series"),
        ("slice there twice", "there twice"),
        ("two series", "holds 2 DICOM series"),
        ("two folders", "holds DICOM files in"),
        ("no files", "holds no DICOM files"),
        ("another shape", "differs from"),
        ("one slice", "is the only slice"),
    ],
)
def test_broken_series(tmp_path, raw, capsys, kind, words):
    source = pancreas_ct(tmp_path / "source")
    break_series(kind, source / "Pancreas-CT" / "PANCREAS_0057")
    arguments = (source, "--dataset-id", 61, "--labeled", 2, "--lists", lists(tmp_path / "lists"))
    assert words in sentence(capsys, "pancreas_ct.py", *arguments)
    assert nothing_left(raw)
    run("pancreas_ct.py", *arguments, "--skip-broken")
    assert split_of(raw / "Dataset061_PancreasCT")["left_out"] == ["PANCREAS_0057"]


def test_last_slice_missing_is_noticed_by_the_label(tmp_path, raw, capsys):
    source = pancreas_ct(tmp_path / "source")
    next((source / "Pancreas-CT" / "PANCREAS_0057").rglob("1-001.dcm")).unlink()
    arguments = (source, "--dataset-id", 61, "--labeled", 2, "--lists", lists(tmp_path / "lists"))
    complaint = sentence(capsys, "pancreas_ct.py", *arguments)
    assert "has shape (14, 12, 7)" in complaint
    assert "label0057.nii.gz has (14, 12, 8)" in complaint


@pytest.mark.parametrize("kind", ["value", "spacing", "truncated", "missing", "twice", "four axes"])
def test_broken_label(tmp_path, raw, capsys, kind):
    source = pancreas_ct(tmp_path / "source")
    path = source / "TCIA_pancreas_labels-02-05-2017" / "label0057.nii.gz"
    stored = voxels(path)
    if kind == "value":
        write(path, 2 * stored, spacing=GEOMETRY["spacing"])
    elif kind == "spacing":
        write(path, stored, spacing=(0.7, 0.75, 1.0))
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "missing":
        path.unlink()
    elif kind == "twice":
        shutil.copy(path, source / path.name)
    elif kind == "four axes":
        sitk.WriteImage(sitk.JoinSeries([image_of(stored)] * 2), str(path))
    words = {
        "value": "label0057.nii.gz holds the value 2 where a label of [0, 1] is expected",
        "spacing": "label0057.nii.gz has the spacing",
        "truncated": "label0057.nii.gz is truncated or damaged",
        "missing": "label0057.nii.gz does not exist",
        "twice": "are labels of the same case",
        "four axes": "has 4 axes",
    }[kind]
    arguments = (source, "--dataset-id", 61, "--labeled", 2, "--lists", lists(tmp_path / "lists"))
    assert words in sentence(capsys, "pancreas_ct.py", *arguments)
    assert nothing_left(raw)


def test_wrong_layouts(tmp_path, raw, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ("--dataset-id", 61, "--labeled", 2)
    assert "holds no folder PANCREAS_0001" in sentence(capsys, "pancreas_ct.py", tmp_path / "empty", *arguments)
    assert "has no folder 'Pancreas_h5'" in sentence(capsys, "pancreas_h5.py", tmp_path / "empty", *arguments)
    source = pancreas_ct(tmp_path / "source", (57,))
    (lists(tmp_path / "lists") / "test.list").write_text("case one\n", encoding="utf-8")
    complaint = sentence(capsys, "pancreas_ct.py", source, *arguments, "--lists", tmp_path / "lists")
    assert "names such as image0001" in complaint
    shutil.copytree(source / "Pancreas-CT" / "PANCREAS_0057", source / "again" / "PANCREAS_0057")
    complaint = sentence(capsys, "pancreas_ct.py", source, *arguments, "--lists", lists(tmp_path / "lists", (57,), (50,)))
    assert "Two cases are called PANCREAS_0057" in complaint
    complaint = sentence(capsys, "pancreas_ct.py", source, *arguments, "--unlabeled-from", tmp_path / "nowhere")
    assert "nowhere is no folder" in complaint
    h5 = pancreas_h5(tmp_path / "h5")
    (h5 / "test.list").unlink()
    assert "test.list does not exist" in sentence(capsys, "pancreas_h5.py", h5, *arguments)
    assert nothing_left(raw)


def test_fuzzed_h5_is_an_error_or_a_volume(tmp_path):
    source = pancreas_h5(tmp_path / "source")
    with imported("pancreas_h5") as script:
        fuzz_h5(script.DATASET, source / "Pancreas_h5" / "image0057_norm.h5")
