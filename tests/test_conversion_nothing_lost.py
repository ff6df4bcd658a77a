"""No file of a user is left out, taken for another kind of scan, or divided from its patient without a word."""

import shutil
import zipfile

import numpy as np
import pytest
from conversion_helpers import OBLIQUE, imported, nothing_left, random_image, run, sentence, split_of, write
from conversion_pancreas import lists, pancreas_ct, scan, write_series
from conversion_sources import left_atrium, raw_data_set
from test_conversion_abdomen import amos22, flare22
from test_conversion_acdc import acdc
from test_conversion_brats import NAMES, brats
from test_conversion_mmwhs import mmwhs

from nnunet_caml.conversion import summary


def test_amos_has_500_scans_by_ct():
    with imported("amos22") as script:
        found = {
            number: script.modality(f"amos_{number}") for number in ("0001", "0500", "0501", "0600", "5000", "6999", "7000")
        }
    assert [number for number, modality in found.items() if modality == "mr"] == ["0501", "0600", "7000"]


def test_patients_with_several_labelled_cases_are_not_divided_by_folds(tmp_path, raw, capsys, monkeypatch):
    monkeypatch.setattr(summary, "FEW", 0)
    run("acdc.py", acdc(tmp_path / "acdc", training=4, testing=1), "--dataset-id", 27, "--labeled", 2, "--challenge-split")
    assert "nnUNetv2_train 27 3d_fullres all -tr" in capsys.readouterr().out
    run("hide_labels.py", raw_data_set(tmp_path / "Dataset050_Mine"), "--dataset-id", 51, "--labeled", 3)
    assert "nnUNetv2_train 51 3d_fullres 0 -tr" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["imagesTr", "imagesTs", "imagesUn"])
def test_images_that_are_not_named_as_nnunet_wants_them(tmp_path, raw, capsys, folder):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    write(source / folder / "a.nii.gz", random_image(1))
    complaint = sentence(capsys, "hide_labels.py", source, "--dataset-id", 51, "--labeled", 3)
    assert f"{folder}/a.nii.gz is not named CASE_0000.nii.gz" in complaint
    assert nothing_left(raw)


@pytest.mark.parametrize(
    "name", ["imagesTr/a_0000.mha", "imagesTs/a_0000.NII.GZ", "imagesUn/a_0000.nii", "imagesUn/sub/a_0000.mha"]
)
def test_images_that_nnunet_does_not_read(tmp_path, raw, capsys, name):
    """nnU-Net does not read them, and whoever has put them there believes that it does."""
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    (source / "imagesUn" / "readme.txt").write_text("no image", encoding="utf-8")
    command = ("hide_labels.py", source, "--dataset-id", 51, "--labeled", 3)
    run(*command)
    write(tmp_path / "a_0000.nii.gz", random_image(1))
    (source / name).parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "a_0000.nii.gz", source / name)
    complaint = sentence(capsys, *command, "--overwrite")
    assert f"{source / name} {'lies in a folder' if 'sub' in name else 'is not named CASE_0000.nii.gz'}" in complaint


@pytest.mark.parametrize("folder", ["imagesTs", "labelsTs", "imagesUn"])
def test_a_folder_on_a_disk_that_is_not_there(tmp_path, raw, capsys, folder):
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    (source / folder).rename(tmp_path / "disk")
    (source / folder).symlink_to(tmp_path / "disk")
    command = ("hide_labels.py", source, "--dataset-id", 51, "--labeled", 3)
    run(*command)
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    complaint = sentence(capsys, *command, "--overwrite")
    assert f"{source / folder} is a link to {tmp_path / 'disk'}, which is not there" in complaint


@pytest.mark.parametrize(
    ("script", "make", "arguments", "name"),
    [
        ("flare22.py", flare22, (), "Case_00009_0000.nii.gz"),
        ("amos22.py", amos22, ("--modality", "ct", "--labeled", 1), "amos_5009.nii.gz"),
        ("amos22.py", amos22, ("--modality", "mr", "--labeled", 1), "amos_5009.nii.gz"),
        ("left_atrium.py", left_atrium, ("--labeled", 1), "x/lgemri.nrrd"),
    ],
)
def test_two_kinds_of_unlabelled_files(tmp_path, raw, capsys, script, make, arguments, name):
    source, more = make(tmp_path / "source"), tmp_path / "more"
    write(more / name, random_image(1))
    write(more / "own_0000.nii.gz", random_image(2))
    command = (script, source, "--dataset-id", 7, *arguments, "--unlabeled-from", more)
    assert "and others such as own_0000.nii.gz, which would be left out" in sentence(capsys, *command)
    (more / "own_0000.nii.gz").rename(more / ".own_0000.nii.gz")
    if "mr" not in arguments:
        run(*command)


def test_dicom_without_an_ending_beside_dicom_with_one(tmp_path, raw, capsys):
    source, more = pancreas_ct(tmp_path / "source"), tmp_path / "more"
    write_series(more / "A" / "study", scan(1))
    write_series(more / "B" / "study", scan(2))
    for path in list((more / "B").rglob("*.dcm")):
        path.rename(path.with_suffix(""))
    arguments = ("--dataset-id", 61, "--labeled", 3, "--lists", lists(tmp_path / "lists"), "--unlabeled-from", more)
    complaint = sentence(capsys, "pancreas_ct.py", source, *arguments)
    assert "in A, and B, which has none and would be left out" in complaint
    (more / "B").rename(tmp_path / "B")
    write(more / "C.nii.gz", scan(3))
    assert "C.nii.gz, which has none" in sentence(capsys, "pancreas_ct.py", source, *arguments)
    (more / "C.nii.gz").unlink()
    run("pancreas_ct.py", source, *arguments)
    assert split_of(raw / "Dataset061_PancreasCT")["unlabeled"] == ["A"]


def test_brats_validation_cases_within_the_download(tmp_path, raw, capsys):
    source = brats(tmp_path / "brats")
    validation = source / "Validation" / "BraTS19_V_1"
    for path in next(source.rglob(NAMES[0])).glob("B*.nii.gz"):
        if "_seg" not in path.name:
            validation.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, validation / path.name.replace(NAMES[0], "BraTS19_V_1"))
    with zipfile.ZipFile(source / "Validation.zip", "w") as archive:
        archive.writestr("Validation/BraTS19_V_1/BraTS19_V_1_t1.nii.gz", b"")
    command = ("brats.py", source, "--dataset-id", 43, "--labeled", "all")
    complaint = sentence(capsys, *command)
    assert "should have a label: complete the data set, give scans without labels with --unlabeled-from" in complaint
    run(*command, "--unlabeled-from", source / "Validation")
    split = split_of(raw / "Dataset043_BraTS")
    assert split["unlabeled"] == ["BraTS19_V_1"]
    assert sorted(split["labeled"]) == sorted(NAMES)


def test_mmwhs_archives_of_the_other_modality_may_stay_packed(tmp_path, raw, capsys):
    source = mmwhs(tmp_path / "mmwhs")
    for kind in ("mr_train", "ct_test"):
        shutil.make_archive(str(source / kind), "zip", source, kind)
        shutil.rmtree(source / kind)
    command = ("mmwhs.py", source, "--labeled", 2, "--dataset-id")
    run(*command, 30, "--modality", "ct")
    assert "mr_train.zip holds mr_train_100" in sentence(capsys, *command, 31, "--modality", "mr")
    tests = ("--use-test-images", "--overwrite")
    assert "ct_test.zip holds ct_test_200" in sentence(capsys, *command, 30, "--modality", "ct", *tests)


@pytest.mark.parametrize(("decimals", "fits"), [(5, True), (2, False)])
def test_directions_of_few_decimals(tmp_path, raw, capsys, decimals, fits):
    """NIfTI holds right angles only; MetaImage files, of which six decimals are usual, hold any."""
    source = raw_data_set(tmp_path / "Dataset050_Mine")
    more = tmp_path / "more"
    direction = np.round(OBLIQUE["direction"], decimals).tolist()
    write(more / "x.mha", random_image(1), **{**OBLIQUE, "direction": direction})
    command = ("hide_labels.py", source, "--dataset-id", 51, "--labeled", 3, "--unlabeled-from", more)
    if fits:
        run(*command)
        return
    assert "leave the case out (--skip-broken)" in sentence(capsys, *command)
    run(*command, "--skip-broken")
    assert split_of(raw / "Dataset051_Mine")["left_out"] == ["x"]
