"""What lies beside images and is none, or lies there twice: it does not become an unlabelled case, and nothing is left out."""

import os
import shutil
from pathlib import Path

import pytest
from conversion_helpers import random_image, random_label, run, sentence, split_of, write
from conversion_sources import left_atrium, raw_data_set
from test_conversion_abdomen import amos22
from test_conversion_acdc import acdc
from test_conversion_mmwhs import mmwhs


@pytest.mark.parametrize("names", [("q3", "q3_mask"), ("q3_image", "q3_label")])
def test_labels_among_further_images(tmp_path: Path, raw: Path, capsys, names: tuple[str, str]):
    source, more = raw_data_set(tmp_path / "Dataset001_Own"), tmp_path / "more"
    write(more / f"{names[0]}.nii.gz", random_image(50))
    write(more / f"{names[1]}.nii.gz", random_label(50))
    said = sentence(capsys, "hide_labels.py", source, "--dataset-id", 7, "--labeled", 2, "--unlabeled-from", more)
    assert f"{names[1]}.nii.gz is called like the label of {names[0]}.nii.gz" in said


def test_mmwhs_further_cases_as_downloaded(tmp_path: Path, raw: Path, capsys):
    source, more = mmwhs(tmp_path / "source"), tmp_path / "more"
    for number in (3, 4):
        for file in (source / "ct_train").glob(f"ct_train_100{number}_*"):
            more.mkdir(exist_ok=True)
            shutil.move(file, more / file.name)
    run("mmwhs.py", source, "--dataset-id", 8, "--labeled", 1, "--unlabeled-from", more)
    assert split_of(raw / "Dataset008_MMWHS_CT")["unlabeled"][1:] == ["ct_train_1003", "ct_train_1004"]
    said = sentence(capsys, "mmwhs.py", source, "--dataset-id", 9, "--labeled", 1, "--unlabeled-from", source / "ct_train")
    assert "ct_train_1001" in said, "a case of SOURCE"


def test_amos_files_that_are_no_further_scans(tmp_path: Path, raw: Path, capsys):
    source = amos22(tmp_path / "source")
    file = next((source / "amos22" / "imagesTs").glob("*.nii.gz"))
    (source / "predictions").mkdir()
    shutil.copy(file, source / "predictions")
    said = sentence(capsys, "amos22.py", source, "--dataset-id", 10, "--modality", "both", "--labeled", "all")
    assert f"predictions/{file.name} has the number of a case of the challenge, and is not where AMOS has it" in said


def test_acdc_frame_that_is_lost(tmp_path: Path, raw: Path, capsys):
    source = acdc(tmp_path / "source")
    folder = source / "training" / "patient011"
    (folder / "Info.cfg").write_text("ED: 1\nES: 3\nGroup: NOR\n", encoding="utf-8")
    for file in folder.glob("*frame03*"):
        file.unlink()
    said = sentence(capsys, "acdc.py", source, "--dataset-id", 11)
    assert "patient011_frame03" in said


def test_left_atrium_case_that_is_there_twice(tmp_path: Path, raw: Path, capsys):
    source = left_atrium(tmp_path / "source")
    case = next(path.parent for path in sorted(source.rglob("lgemri.nrrd")))
    shutil.copytree(case, source / "a" / "b" / "old" / case.name)
    said = sentence(capsys, "left_atrium.py", source, "--dataset-id", 12, "--labeled", 2)
    assert f"{case.name} is there twice" in said


def test_left_atrium_deeper_below(tmp_path: Path, raw: Path):
    source = left_atrium(tmp_path / "source")
    deep = tmp_path / "above" / "2018_UTAH_MICCAI" / "Training Set"
    shutil.copytree(source, deep, ignore=shutil.ignore_patterns("*.list"))
    run("left_atrium.py", tmp_path / "above", "--lists", source, "--dataset-id", 13, "--labeled", 2)
    assert len(split_of(raw / "Dataset013_LeftAtrium")["labeled"]) == 2


def test_the_next_command_plans_anew(tmp_path: Path, raw: Path, capsys, monkeypatch):
    """nnU-Net keeps the fingerprint and the split of an earlier data set of that name."""
    preprocessed = tmp_path / "preprocessed"
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    source = raw_data_set(tmp_path / "Dataset001_Own")
    arguments = ("hide_labels.py", source, "--dataset-id", 14, "--name", "Hidden", "--labeled", 2)
    run(*arguments)
    assert "--clean" not in capsys.readouterr().out
    (preprocessed / "Dataset014_Hidden").mkdir(parents=True)
    (preprocessed / "Dataset014_Hidden" / "splits_final.json").write_text("[]", encoding="utf-8")
    run(*arguments, "--overwrite")
    said = capsys.readouterr().out
    assert "nnUNetv2_plan_and_preprocess -d 14 -c 3d_fullres --verify_dataset_integrity --clean" in said
    assert f"remove {os.path.join(preprocessed, 'Dataset014_Hidden', 'splits_final.json')}" in said
