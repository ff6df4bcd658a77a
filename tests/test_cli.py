"""``nnunet-caml``: what its commands do, and what they say where they cannot."""

import json
import shutil

import pytest
from conftest import NAME, Workspace
from test_unlabeled import dataset

from nnunet_caml.cli import main
from nnunet_caml.startup import DISCOVERY_FOLDER


def test_trainers_prints_the_folder_and_nothing_else(capsys: pytest.CaptureFixture):
    assert main(["trainers"]) == 0
    assert capsys.readouterr().out == f"{DISCOVERY_FOLDER}\n"


def test_preprocess_does_every_configuration(workspace: Workspace, capsys: pytest.CaptureFixture):
    file = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    coarse = {"inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_3d_coarse", "spacing": [3.0, 2.0, 2.0]}
    plans["configurations"]["3d_coarse"] = coarse
    file.write_text(json.dumps(plans), encoding="utf-8")
    assert main(["preprocess", "-d", "101", "-c", "3d_tiny", "3d_coarse", "-np", "1"]) == 0
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("3d_tiny: 5 unlabelled cases preprocessed, 5 there in")
    assert second.startswith("3d_coarse: 5 unlabelled cases preprocessed, 5 there in")
    assert second.endswith("nnUNetPlans_3d_coarse_unlabeled")
    assert len(dataset(workspace, "3d_coarse").done_cases()) == 5


def test_preprocess_refuses_a_case_that_has_a_label(workspace: Workspace, capsys: pytest.CaptureFixture):
    shutil.copy(workspace.raw / "imagesTr/tr_1_0000.nii.gz", workspace.raw / "imagesUn/tr_1_0000.nii.gz")
    assert main(["preprocess", "-d", "101", "-c", "3d_tiny", "-np", "1"]) == 1
    assert "Case tr_1 is labelled and unlabelled at the same time" in capsys.readouterr().err
    assert not list(workspace.preprocessed.glob("*_unlabeled/*.pkl")), "it says so before hours of work"


def test_preprocess_without_raw_cases_says_where_it_looked(
    workspace: Workspace, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    command = ["preprocess", "-d", NAME, "-c", "3d_tiny", "-np", "1"]
    shutil.rmtree(workspace.raw / "imagesUn")
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"There are no raw unlabelled cases for {NAME}: looked for images in imagesUn/ and for an entry" in said
    assert str(workspace.raw) in said
    assert "is there" not in said
    (workspace.raw / "imagesUN").mkdir()
    assert main(command) == 1
    assert "imagesUN is there: if it is meant, call it imagesUn." in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_raw")
    assert main(command) == 1
    assert "$nnUNet_raw, which is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("-np 0", "-np must be at least 1, got 0"),
        ("-num_parts 0", "-num_parts must be at least 1, got 0"),
        (
            "-p Others",
            "Others.json does not exist: run nnUNetv2_plan_and_preprocess -d 101 with the -pl PLANNER or -overwrite_plans_name",
        ),
    ],
)
def test_preprocess_with_options_that_cannot_be(
    workspace: Workspace, capsys: pytest.CaptureFixture, options: str, sentence: str
):
    assert main(["preprocess", "-d", "101", *options.split()]) == 1
    assert sentence in capsys.readouterr().err


def test_preprocess_where_the_description_of_the_data_set_is_lost(workspace: Workspace, capsys: pytest.CaptureFixture):
    (workspace.preprocessed / "dataset.json").unlink()
    assert main(["preprocess", "-d", "101", "-c", "3d_tiny"]) == 1
    assert "dataset.json does not exist, which nnU-Net's planning puts there: run it again" in capsys.readouterr().err


def test_preprocess_goes_on_from_a_configuration_that_is_not_planned(workspace: Workspace, capsys: pytest.CaptureFixture):
    """Many a data set has no 3d_lowres, and one command is typed for all."""
    assert main(["preprocess", "-d", "101", "-c", "3d_lowres", "3d_tiny", "-np", "1"]) == 1
    said = capsys.readouterr()
    assert "3d_tiny: 5 unlabelled cases preprocessed" in said.out
    assert "3d_lowres: the plans nnUNetPlans have no such configuration, but 2d, 3d_fullres" in said.err


@pytest.mark.parametrize("name", ["nnUNetPlans.json", "dataset.json"])
def test_preprocess_names_a_damaged_file(workspace: Workspace, capsys: pytest.CaptureFixture, name: str):
    (workspace.preprocessed / name).write_text("{\n oops", encoding="utf-8")
    assert main(["preprocess", "-d", "101", "-c", "3d_tiny"]) == 1
    assert f"{workspace.preprocessed / name} is no valid JSON (" in capsys.readouterr().err


@pytest.mark.parametrize("listed", [False, True])
def test_preprocess_refuses_a_case_that_will_have_a_label(workspace: Workspace, capsys: pytest.CaptureFixture, listed: bool):
    """As where unlabelled cases are preprocessed before the labelled ones."""
    shutil.copy(workspace.raw / "imagesTr/tr_0_0000.nii.gz", workspace.raw / "imagesUn")
    for folder in workspace.preprocessed.glob("nnUNetPlans_*"):
        shutil.rmtree(folder)
    if listed:
        (workspace.raw / "imagesTr").rename(workspace.root / "elsewhere")
        file = workspace.preprocessed / "dataset.json"
        entry = {f"tr_{i}": {"images": [f"../../elsewhere/tr_{i}_0000.nii.gz"], "label": "none"} for i in range(4)}
        file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "dataset": entry}), encoding="utf-8")
    assert main(["preprocess", "-d", "101", "-c", "3d_tiny", "-np", "1"]) == 1
    assert "tr_0" in capsys.readouterr().err
