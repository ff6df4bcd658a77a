"""Data sets of nnU-Net with some labels hidden."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import write_image
from conversion_helpers import dataset_json, run, run_as_user, sentence, split_of, verify, voxels, write
from conversion_sources import raw_data_set
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, plan_experiment_dataset

from nnunet_caml.conversion import summary


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_hide_labels(tmp_path, raw, monkeypatch, ending):
    source = raw_data_set(tmp_path / "Dataset050_Mine", ending=ending, channels=2)
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 2, "--test", 1, "--preview")
    target = raw / "Dataset051_Mine"
    split = split_of(target)
    assert [len(split[role]) for role in ("labeled", "unlabeled", "test")] == [2, 4, 3]
    assert {"t0", "t1"} < set(split["test"])
    assert "u0" in split["unlabeled"]
    original = {path.name: path.read_bytes() for path in source.rglob(f"*{ending}")}
    for path in target.rglob(f"*{ending}"):
        assert path.read_bytes() == original[path.name]
    assert {path.name for path in (target / "labelsTs").iterdir()} == {
        f"{name}{ending}" for name in split["test"] if name != "t1"
    }
    content = dataset_json(target)
    assert content["regions_class_order"] == [1, 2, 3]
    assert content["labels"]["whole"] == [1, 2, 3]
    verify(target, monkeypatch)


@pytest.mark.parametrize("link", [(), ("--link",)])
def test_voxels_in_a_file_of_their_own_come_along(tmp_path, raw, link):
    """A header that names the file of its voxels would name none in another folder."""
    source = raw_data_set(tmp_path / "Dataset050_Mine", ending=".nrrd")
    expected = {}
    for path in source.rglob("*.nrrd"):
        expected[path.name] = voxels(path)
        write(path.with_suffix(".nhdr"), expected[path.name])  # ITK writes header and voxels apart
        path.with_suffix(".nhdr").rename(path)
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 2, *link)
    shutil.move(source, tmp_path / "elsewhere")
    converted = list((raw / "Dataset051_Mine").rglob("*.nrrd"))
    assert len(converted) >= 9
    for path in converted:
        np.testing.assert_array_equal(voxels(path), expected[path.name])


def test_hide_labels_run_by_a_user_on_its_own_output(tmp_path, raw):
    source = raw_data_set(raw / "Dataset050_Mine")
    first = run_as_user("hide_labels.py", source, "--dataset-id", 51, "--labeled", 4, "-np", 1, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    run("hide_labels.py", raw / "Dataset051_Mine", "--dataset-id", 52, "--labeled", 2)
    assert len(split_of(raw / "Dataset052_Mine")["unlabeled"]) == 5


def test_patients_are_not_divided(tmp_path, raw):
    """The converter that made the data set knows them."""
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    cases = sorted(path.name[:2] for path in (source / "imagesTr").iterdir())
    patients = {case: f"patient{number // 2}" for number, case in enumerate(cases)}
    (source / "split.json").write_text(json.dumps({"patients": patients}), encoding="utf-8")
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 1, "--test", 1, "--without-test")
    split = split_of(raw / "Dataset051_Mine")
    roles = {case: role for role in ("labeled", "unlabeled", "test") for case in split[role]}
    for one in cases:
        for other in cases:
            assert patients[one] != patients[other] or roles[one] == roles[other]
    assert len(split["labeled"]) == 2
    # and it says so to whoever hides more
    assert {case: split["patients"][case] for case in cases} == patients


@pytest.mark.parametrize(("few", "fold"), [(20, "all"), (3, "0")])
def test_few_labelled_cases_are_trained_on_all_of_them(tmp_path, raw, capsys, monkeypatch, few, fold):
    monkeypatch.setattr(summary, "FEW", few)
    run("hide_labels.py", raw_data_set(tmp_path / "Dataset050_Mine"), "--dataset-id", 51, "--labeled", 3)
    assert f"nnUNetv2_train 51 3d_fullres {fold} -tr nnUNetTrainerCAML" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ending", "shape", "spacing"),
    [
        (".png", (40, 36), (1, 1)),
        (".nii.gz", (1, 40, 36), (1, 1, 5)),
        (".nii.gz", (40, 36, 1), (5, 1, 1)),
        (".nii.gz", (12, 40, 36), (1, 1, 5)),
    ],
)
def test_what_comes_next_is_what_nnunet_plans(tmp_path, raw, capsys, monkeypatch, ending, shape, spacing):
    """``2d`` of images that have no third axis, or one slice."""
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    rng = np.random.default_rng(0)
    for path in list(source.rglob("*.nii.gz")):
        path.unlink()
        values = rng.integers(0, 4 if "labels" in path.parent.name else 200, shape).astype(np.uint8)
        write_image(values, path.with_name(path.name.replace(".nii.gz", ending)), spacing)
    description = (source / "dataset.json").read_text(encoding="utf-8").replace(".nii.gz", ending)
    (source / "dataset.json").write_text(description, encoding="utf-8")
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 3)
    said = capsys.readouterr().out
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    extract_fingerprint_dataset(51, num_processes=1)
    plan_experiment_dataset(51)
    (file,) = (tmp_path / "preprocessed").rglob("nnUNetPlans.json")
    planned = json.loads(file.read_text(encoding="utf-8"))["configurations"]
    configuration = "3d_fullres" if "3d_fullres" in planned else "2d"
    assert configuration == ("3d_fullres" if 12 in shape else "2d")
    assert f"nnUNetv2_plan_and_preprocess -d 51 -c {configuration} " in said
    assert f"nnUNetv2_train 51 {configuration} all" in said


def test_test_cases_without_a_label_are_counted(tmp_path, raw, capsys):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 2)
    assert "Test cases without a label: 1 of 2, such as t1. nnUNetv2_evaluate_folder wants" in capsys.readouterr().out
    (source / "labelsTs" / "t0.nii.gz").unlink()
    run("hide_labels.py", source, "--dataset-id", 52, "--labeled", 2)
    assert "nnUNetv2_evaluate_folder" not in capsys.readouterr().out


def test_name_of_a_folder_that_cannot_name_a_data_set(tmp_path, raw):
    source = raw_data_set(tmp_path / "Dataset050_My.Data")
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 2, "--name", "MyData")
    assert (raw / "Dataset051_MyData").is_dir()


def test_label_without_its_image(tmp_path, raw, capsys):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    (source / "imagesTr" / "p3_0000.nii.gz").unlink()
    assert "p3_0000.nii.gz does not exist" in sentence(capsys, "hide_labels.py", source, "--dataset-id", 51, "--labeled", 2)


def test_label_of_a_test_case_that_is_a_link_to_nowhere(tmp_path, raw, capsys):
    """It would become a test case without a label, as some are."""
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    label = source / "labelsTs" / "t0.nii.gz"
    label.unlink()
    label.symlink_to(tmp_path / "moved" / "t0.nii.gz")
    said = sentence(capsys, "hide_labels.py", source, "--dataset-id", 51, "--labeled", 2)
    assert f"{label} does not exist, but t0 should have a label" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", {"0": "background", "1": "a"}),
        ("labels", {"Background": 0, "a": 1}),
        ("dataset", ["p1"]),
        ("dataset", {"p1": {"images": ["imagesTr/p1_0000.nii.gz"]}}),
        ("unlabeled", ["u0"]),
        ("unlabeled", {"u9": {"images": []}}),
    ],
)
def test_description_that_is_none(tmp_path, raw, capsys, key, value):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    content = {**dataset_json(source), key: value}
    content.pop("regions_class_order", None)
    (source / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    assert key in sentence(capsys, "hide_labels.py", source, "--dataset-id", 51, "--labeled", 1) or key == "labels"


def test_hide_labels_where_dataset_json_lists_the_files(tmp_path, raw, monkeypatch):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    content = dataset_json(source)
    monkeypatch.setenv("ELSEWHERE", "../Dataset050_Mine/imagesTr")
    content["dataset"] = {
        f"q{n}": {"images": [f"$ELSEWHERE/p{n}_0000.nii.gz"], "label": f"labelsTr/p{n}.nii.gz"} for n in (1, 3, 4)
    }
    content["numTraining"] = 3
    (source / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 2)
    target = raw / "Dataset051_Mine"
    assert {*split_of(target)["labeled"], *split_of(target)["unlabeled"]} == {"q1", "q3", "q4", "u0"}
    assert "dataset" not in dataset_json(target)
    verify(target, monkeypatch)


def test_hide_labels_where_dataset_json_lists_unlabelled_cases(tmp_path, raw, monkeypatch):
    """Paths that start at the source's folder are found from the new one as well."""
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    (source / "imagesUn").rename(source / "far")
    content = dataset_json(source)
    content["unlabeled"] = {"u0": {"images": ["far/u0_0000.nii.gz"]}}
    (source / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 2, "--link")
    target = raw / "Dataset051_Mine"
    assert "u0" in split_of(target)["unlabeled"]
    assert "unlabeled" not in dataset_json(target)
    assert (target / "imagesUn" / "u0_0000.nii.gz").read_bytes() == (source / "far" / "u0_0000.nii.gz").read_bytes()


def test_hide_labels_keeps_two_dimensional_colour_images(tmp_path, raw, monkeypatch):
    source = tmp_path / "Dataset050_Photos"
    for number in range(3):
        for folder in ("imagesTr", "labelsTr"):
            (source / folder).mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(number).integers(0, 255, (8, 9, 3)).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(source / "imagesTr" / f"p{number}_0000.png"))
        label = np.arange(72, dtype=np.uint8).reshape(8, 9) % 2
        sitk.WriteImage(sitk.GetImageFromArray(label), str(source / "labelsTr" / f"p{number}.png"))
    content = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "road": 1},
        "numTraining": 3,
        "file_ending": ".png",
    }
    (source / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 1, "--preview")
    target = raw / "Dataset051_Photos"
    assert len(list((target / "imagesUn").glob("*.png"))) == 2
    verify(target, monkeypatch)


def test_hide_labels_takes_the_spacing_of_tiff_files_along(tmp_path, raw, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    for path in sorted(source.rglob("*.nii.gz")):
        stem = path.name[: -len(".nii.gz")]
        tifffile.imwrite(path.with_name(f"{stem}.tif"), voxels(path))
        path.with_name(f"{stem.removesuffix('_0000')}.json").write_text(
            json.dumps({"spacing": [3.0, 2.0, 1.0]}), encoding="utf-8"
        )
        path.unlink()
    content = dataset_json(source)
    (source / "dataset.json").write_text(json.dumps({**content, "file_ending": ".tif"}), encoding="utf-8")
    run("hide_labels.py", source, "--dataset-id", 51, "--labeled", 2)
    target = raw / "Dataset051_Mine"
    for folder in ("imagesTr", "labelsTr", "imagesUn", "imagesTs", "labelsTs"):
        stems = {path.stem.removesuffix("_0000") for path in (target / folder).glob("*.tif")}
        assert {path.stem for path in (target / folder).glob("*.json")} == stems
    verify(target, monkeypatch)


def test_label_of_an_unlabelled_case_is_never_read(tmp_path, raw):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    run("hide_labels.py", source, "--dataset-id", 7, "--labeled", 2)
    for name in split_of(raw / "Dataset007_Mine")["unlabeled"]:
        (source / "labelsTr" / f"{name}.nii.gz").write_bytes(b"garbage")
    run("hide_labels.py", source, "--dataset-id", 8, "--labeled", 2)
    written = {path.name for path in raw.glob("Dataset008_Mine/labels*/*")}
    assert written == {"t0.nii.gz"} | {f"{name}.nii.gz" for name in split_of(raw / "Dataset008_Mine")["labeled"]}
