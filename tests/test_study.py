"""A whole study in small: every kind of arm through the real commands, killed and continued."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import blobs, write_image

MEAN_OF_NETWORKS = Path(__file__).resolve().parents[1] / "benchmarks" / "mean_of_networks.py"
LABEL_QUALITY = Path(__file__).resolve().parents[1] / "benchmarks" / "label_quality.py"
RUN_STUDY = Path(__file__).resolve().parents[1] / "benchmarks" / "run_study.py"
ARMS = {
    "labelled only": {"trainer": "nnUNetTrainer"},
    "all labels": {"trainer": "nnUNetTrainer", "all_labels": True},
    "CAML": {"trainer": "nnUNetTrainerCAML", "auxiliary": True},
    "mean teacher": {"trainer": "nnUNetTrainerMeanTeacher"},
    "pseudo-labels": {"trainer": "nnUNetTrainer", "pseudo_labels_from": "labelled only"},
}
STUDY = {
    "data": {"converter": "decathlon.py", "source": "Task01_Blobs", "arguments": ["--test", "2"], "development": 2},
    "labeled": [2],
    "iterations": 40,
    "iterations_per_epoch": 4,
    "test_time_augmentation": False,
    "configuration": {
        "name": "3d_mini",
        "inherits_from": "3d_fullres",
        "patch_size": [16, 16, 16],
        "features": [4, 8, 8],
        "batch_size": 2,
    },
    "arms": ARMS,
}


def write_source(folder: Path) -> None:
    """A Decathlon task of eight cases."""
    cases = [f"blobs_{i:03}" for i in range(8)]
    for i, case in enumerate(cases):
        image, label = blobs(i)
        write_image(image, folder / f"imagesTr/{case}.nii.gz")
        write_image(label, folder / f"labelsTr/{case}.nii.gz")
    training = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases]
    description = {"labels": {"0": "background", "1": "front", "2": "back"}, "modality": {"0": "MRI"}, "training": training}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def read_cases(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as rows:
        return [row["case"] for row in csv.DictReader(rows)]


@pytest.mark.slow
def test_every_kind_of_arm_and_a_kill(tmp_path: Path):
    write_source(tmp_path / "source" / "Task01_Blobs")
    file, output = tmp_path / "mini.json", tmp_path / "output"
    file.write_text(json.dumps(STUDY), encoding="utf-8")
    command = [
        sys.executable,
        str(RUN_STUDY),
        str(file),
        "-o",
        str(output),
        "--shared",
        str(tmp_path / "source"),
        "--jobs",
        "2",
    ]

    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)
    folder = output / "nnUNet_results"
    while not list(folder.glob("*/Study_CAML_seed0__*/fold_all/checkpoint_latest.pth")):
        assert killed.poll() is None, "the study ended before the CAML training had a checkpoint"
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()

    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    logs = {file.name: file.read_text(encoding="utf-8") for file in (output / "logs").glob("*.nnUNetv2_train.txt")}
    assert not [name for name, log in logs.items() if "train_loss nan" in log]
    log = logs["CAML-2-subset0-seed0.nnUNetv2_train.txt"]
    assert "Epoch 0\n" not in log.replace(" \n", "\n"), "the training did not go on from its checkpoint"
    with (output / "report" / "cases.csv").open(encoding="utf-8") as rows:
        measured = list(csv.DictReader(rows))
    assert {row["arm"] for row in measured} == {*ARMS, "CAML (A)"}
    # two development cases, two classes
    assert all(len([row for row in measured if row["arm"] == arm]) == 4 for arm in ARMS)
    assert all(0 <= float(row["dice"]) <= 1 for row in measured)
    for name in ("summary.md", "learning_curve.png", "arms.png", "training.png", "gallery.png"):
        assert (output / "report" / name).stat().st_size > 0
    again = subprocess.run([*command, "--plan"], capture_output=True, encoding="utf-8")
    assert "5 runs of 40 iterations, 5 of them done" in again.stdout

    trained = {f: f.stat().st_mtime_ns for f in folder.rglob("checkpoint_final.pth")}
    final = subprocess.run([*command, "--test"], capture_output=True, encoding="utf-8")
    assert final.returncode == 0, final.stdout + final.stderr
    assert trained == {f: f.stat().st_mtime_ns for f in folder.rglob("checkpoint_final.pth")}, "nothing is trained again"
    cases = [set(read_cases(output / report / "cases.csv")) for report in ("report", "report_test")]
    assert len(cases[0]) == len(cases[1]) == 2
    assert not cases[0] & cases[1]

    mirrored = subprocess.run([*command, "--mirrored"], capture_output=True, encoding="utf-8")
    assert mirrored.returncode == 0, mirrored.stdout + mirrored.stderr
    assert "mirrored in prediction" in mirrored.stdout
    assert trained == {f: f.stat().st_mtime_ns for f in folder.rglob("checkpoint_final.pth")}, "nothing is trained again"
    assert "nnUNetv2_predict" in mirrored.stdout
    assert "--disable_tta" not in mirrored.stdout
    assert "--disable_tta" in final.stdout
    assert read_cases(output / "report_mirrored" / "cases.csv") == read_cases(output / "report" / "cases.csv")

    largest = subprocess.run([*command, "--largest"], capture_output=True, encoding="utf-8")
    assert largest.returncode == 0, largest.stdout + largest.stderr
    assert "the largest component of each class." in largest.stdout
    assert "nnUNetv2_predict" not in largest.stdout
    assert "nnUNetv2_apply_postprocessing" in largest.stdout
    assert read_cases(output / "report_largest" / "cases.csv") == read_cases(output / "report" / "cases.csv")

    quality = [sys.executable, str(LABEL_QUALITY), str(file), "-o", str(output), "--labeled", "2", "--patches", "4"]
    found = subprocess.run(quality, capture_output=True, encoding="utf-8")
    assert found.returncode == 0, found.stderr
    dice = dict(line.rsplit(": ", 1) for line in found.stdout.splitlines())
    assert list(dice)[:3] == ["augmented, V", "augmented, A", "augmented, mean"]
    assert len(dice) == 7
    assert all(0 <= float(value) <= 1 for value in dice.values())
    missing = subprocess.run([*quality, "--arm", "mean teacher"], capture_output=True, encoding="utf-8")
    assert missing.returncode == 1
    assert "has no trained model: run the study first, an arm with auxiliary" in missing.stderr

    mean = subprocess.run(
        [sys.executable, str(MEAN_OF_NETWORKS), str(file), "-o", str(output), "--labeled", "2"],
        capture_output=True,
        encoding="utf-8",
    )
    assert mean.returncode == 0, mean.stderr
    assert [line.split(" | ")[0] for line in mean.stdout.splitlines()[-3:]] == ["| V", "| A", "| mean of V and A"]
    folder = output / "mean_of_networks" / "CAML-2-subset0-seed0"
    for name, suffix in (("V", ""), ("A", "-auxiliary")):
        of_study = output / "metrics" / f"CAML-2-subset0-seed0{suffix}.csv"
        assert (folder / f"{name}.csv").read_text() == of_study.read_text(), "the study's own figures"
    assert read_cases(folder / "mean of V and A.csv") == read_cases(of_study)
    assert not list(folder.rglob("*.npz"))
