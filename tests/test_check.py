"""``nnunet-caml check``: says that nnU-Net's commands will find the trainers, or why they will not."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from nnunet_caml import cli
from nnunet_caml.startup import DISCOVERY_FOLDER


def test_two_lines_where_all_is_well(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", DISCOVERY_FOLDER)
    assert cli.main(["check"]) == 0
    line, names = capsys.readouterr().out.splitlines()
    assert "nnU-Net finds nnUNetTrainerCAML" in line
    assert {"nnUNetTrainerCAML_copyPaste", "nnUNetTrainerCAML_sharedEncoder"} < set(
        names.removeprefix("Its variants: ").split(", ")
    )


def test_without_the_start_up_file(tmp_path: Path) -> None:
    # an interpreter that has everything on its path, but in no folder whose .pth files it reads, as with pip install --target
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    paths = [str(Path(__file__).resolve().parent.parent), sysconfig.get_path("purelib")]
    environment = {k: v for k, v in os.environ.items() if k != "nnUNet_extTrainer"} | {"PYTHONPATH": os.pathsep.join(paths)}
    check = [python, "-m", "nnunet_caml.cli", "check"]
    result = subprocess.run(check, env=environment, capture_output=True, encoding="utf-8")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "export nnUNet_extTrainer=" + DISCOVERY_FOLDER in result.stderr
    converter = [python, "dataset_conversion/acdc.py", "--help"]
    result = subprocess.run(converter, env=environment, cwd=paths[0], capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    by_hand = {**environment, "nnUNet_extTrainer": DISCOVERY_FOLDER}
    result = subprocess.run(check, env=by_hand, capture_output=True, encoding="utf-8")
    assert result.returncode == 0
    assert "FutureWarning" not in result.stderr


def test_a_module_of_the_user_that_cannot_be_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("import no_such_module\n")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), DISCOVERY_FOLDER]))
    assert cli.main(["check"]) == 1
    error = capsys.readouterr().err
    assert "No module named 'no_such_module'" in error
    assert str(tmp_path) in error


def test_another_class_of_that_name(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "copied.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerCAML(nnUNetTrainer):\n    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), DISCOVERY_FOLDER]))
    assert cli.main(["check"]) == 1
    assert "another class named nnUNetTrainerCAML, in module copied" in (error := capsys.readouterr().err)
    assert str(tmp_path) in error


def test_a_folder_of_the_users_trainers_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path / "mistyped"), DISCOVERY_FOLDER]))
    assert cli.main(["check"]) == 1
    assert f"nnUNet_extTrainer names {tmp_path / 'mistyped'}, which is no folder" in capsys.readouterr().err
