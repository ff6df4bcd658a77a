"""Tasks of the Medical Segmentation Decathlon: several channels in a file, test images, listed cases."""

import shutil

import numpy as np
import SimpleITK as sitk
from conftest import SHARED
from conversion_helpers import (
    OBLIQUE,
    assert_same_geometry,
    dataset_json,
    image_of,
    needs_data,
    random_image,
    random_label,
    run,
    run_as_user,
    sentence,
    split_of,
    verify,
    voxels,
)
from conversion_sources import decathlon


def test_decathlon(tmp_path, raw, monkeypatch):
    source = decathlon(tmp_path / "Task07_Organ", **OBLIQUE)
    done = run_as_user("decathlon.py", source, "--dataset-id", 7, "--labeled", 2, "--test", 1, "--preview", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    target = raw / "Dataset007_Organ"
    split = split_of(target)
    assert [len(split[role]) for role in ("labeled", "unlabeled", "test")] == [2, 3, 1]
    assert split["seed"] == 0
    for role, folder in (("labeled", "Tr"), ("unlabeled", "Un"), ("test", "Ts")):
        for name in split[role]:
            number = int(name[-3:])
            for channel in range(2):
                image = target / f"images{folder}" / f"{name}_{channel:04d}.nii.gz"
                np.testing.assert_array_equal(voxels(image), random_image(10 * number + channel))
                assert voxels(image).dtype == np.int16
                assert_same_geometry(image, OBLIQUE)
            label = target / f"labels{folder}" / f"{name}.nii.gz"
            assert label.exists() == (folder != "Un")
            if label.exists():
                np.testing.assert_array_equal(voxels(label), random_label(number, 3))
    content = dataset_json(target)
    assert content["channel_names"] == {"0": "M0", "1": "M1"}
    assert content["labels"] == {"background": 0, "a": 1, "b": 2}
    assert (content["licence"], content["numTraining"]) == ("CC-BY-SA 4.0", 2)
    assert (target / "preview.png").read_bytes().startswith(b"\x89PNG")
    verify(target, monkeypatch)


def test_background_of_another_name(tmp_path, raw, monkeypatch):
    source = decathlon(tmp_path / "Task07_Organ (copy)")
    file = source / "dataset.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"background"', '"Background"'), encoding="utf-8")
    assert "Background" in file.read_text(encoding="utf-8")
    run("decathlon.py", source, "--dataset-id", 7, "--labeled", 2, "--name", "Organ")
    assert dataset_json(raw / "Dataset007_Organ")["labels"] == {"background": 0, "a": 1, "b": 2}
    verify(raw / "Dataset007_Organ", monkeypatch)


def test_decathlon_test_images_only_on_request(tmp_path, raw):
    source = decathlon(tmp_path / "Task07_Organ", channels=1)
    run("decathlon.py", source, "--dataset-id", 7, "--labeled", "all", "--use-test-images")
    split = split_of(raw / "Dataset007_Organ")
    assert split["unlabeled"] == ["organ_900", "organ_901"]
    assert len(split["labeled"]) == 6
    assert split["seed"] is None


def test_unlabeled_from(tmp_path, raw):
    source = decathlon(tmp_path / "Task07_Organ", channels=2)
    for name in ("amos_0004", "amos_0600"):  # what looks like a channel number is none here
        volumes = [image_of(random_image(number)) for number in range(2)]
        (tmp_path / "more").mkdir(exist_ok=True)
        sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "more" / f"{name}.nii.gz"))
    (tmp_path / "more" / "readme.txt").write_text("not an image", encoding="utf-8")
    run("decathlon.py", source, "--dataset-id", 7, "--labeled", 6, "--unlabeled-from", tmp_path / "more")
    target = raw / "Dataset007_Organ"
    assert split_of(target)["unlabeled"] == ["amos_0004", "amos_0600"]
    np.testing.assert_array_equal(voxels(target / "imagesUn" / "amos_0600_0001.nii.gz"), random_image(1))
    # and nnU-Net's own file names
    run("decathlon.py", source, "--dataset-id", 8, "--labeled", 6, "--unlabeled-from", target / "imagesUn")
    assert split_of(raw / "Dataset008_Organ")["unlabeled"] == ["amos_0004", "amos_0600"]


@needs_data("hippocampus")
def test_hippocampus(tmp_path, raw, monkeypatch):
    source = SHARED / "data" / "hippocampus" / "Task04_Hippocampus"
    run("decathlon.py", source, "--dataset-id", 4, "--labeled", 10, "--test", 40)
    target = raw / "Dataset004_Hippocampus"
    split = split_of(target)
    assert [len(split[role]) for role in ("labeled", "unlabeled", "test")] == [10, 150, 40]
    name = split["labeled"][0]
    original = source / "labelsTr" / f"{name}.nii.gz"
    np.testing.assert_array_equal(voxels(target / "labelsTr" / f"{name}.nii.gz"), voxels(original))
    verify(target, monkeypatch)


def test_listed_cases(tmp_path, raw, capsys):
    source = decathlon(tmp_path / "Task07_Organ", channels=1)
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("# mine\norgan_004\n\norgan_001  \n", encoding="utf-8")
    run("decathlon.py", source, "--dataset-id", 7, "--labeled-cases", wanted, "--test", 2)
    split = split_of(raw / "Dataset007_Organ")
    assert split["labeled"] == ["organ_001", "organ_004"]
    assert len(split["test"]) == 2
    assert "--labeled-cases wanted.txt" in split["command"]
    wanted.write_text("organ_004\norgan_900", encoding="utf-8")
    complaint = sentence(capsys, "decathlon.py", source, "--dataset-id", 8, "--labeled-cases", wanted)
    assert "organ_900, but the source has no such case" in complaint
    complaint = sentence(capsys, "decathlon.py", source, "--dataset-id", 8, "--labeled-cases", wanted, "--use-test-images")
    assert "organ_900, which has no label" in complaint
    wanted.write_bytes(b"\xff\xfe\x00")
    assert "one case identifier a line" in sentence(
        capsys, "decathlon.py", source, "--dataset-id", 8, "--labeled-cases", wanted
    )


def test_only_the_cases_of_a_list(tmp_path, raw, capsys):
    source = decathlon(tmp_path / "Task07_Organ", channels=1)
    (source / "labelsTr" / "organ_000.nii.gz").unlink()  # what is not taken need not be whole
    wanted = tmp_path / "mine.txt"
    wanted.write_text("organ_004\norgan_001\norgan_002\n", encoding="utf-8")
    run("decathlon.py", source, "--dataset-id", 7, "--labeled", 1, "--only", wanted)
    split = split_of(raw / "Dataset007_Organ")
    assert sorted(split["labeled"] + split["unlabeled"]) == ["organ_001", "organ_002", "organ_004"]
    assert split["test"] == []
    assert "--only mine.txt" in split["command"]
    wanted.write_text("organ_004\norgan_900\norgan_901\n", encoding="utf-8")
    complaint = sentence(capsys, "decathlon.py", source, "--dataset-id", 8, "--labeled", 1, "--only", wanted)
    assert "mine.txt names organ_900, which SOURCE does not have (2 of 3 are missing)" in complaint


def test_missing_files_of_a_task(tmp_path, raw, capsys):
    source = decathlon(tmp_path / "Task07_Organ", channels=1)
    complaint = sentence(
        capsys, "decathlon.py", source, "--dataset-id", 7, "--labeled", 6, "--unlabeled-from", source / "imagesTr"
    )
    assert "is named twice" in complaint
    (source / "imagesTr" / "organ_003.nii.gz").unlink()
    complaint = sentence(capsys, "decathlon.py", source, "--dataset-id", 7, "--labeled", 6)
    assert "organ_003.nii.gz does not exist" in complaint
    shutil.rmtree(source / "imagesTs")
    complaint = sentence(capsys, "decathlon.py", source, "--dataset-id", 7, "--labeled", 6, "--use-test-images")
    assert "imagesTs holds no .nii.gz files" in complaint
    complaint = sentence(
        capsys, "decathlon.py", source, "--dataset-id", 7, "--labeled", 5, "--unlabeled-from", source / "labelsXX"
    )
    assert "labelsXX is no folder" in complaint
