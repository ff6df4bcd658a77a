"""The study's command line, and what a run is told: its seed, its teacher, its cost. Nothing is trained here."""

import errno
import json
import os
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import write_image
from test_benchmarks import study, write_figures

import run_study
from nnunet_caml import progress
from nnunet_caml.demo.commands import CommandError
from study import report, runs, schedules
from study.commands import FOLDERS, Measurement, Workspace
from study.description import Arm, Run
from study.schedules import COST, Scheduled

WORDS: dict[str, Any] = {
    "data": {"converter": "decathlon.py", "source": "x"},
    "labeled": [4],
    "configuration": {"name": "3d_fullres"},
    "iterations": 100,
    "iterations_per_epoch": 50,
    "arms": {"plain": {"trainer": "nnUNetTrainer"}},
}
DEVELOPMENT = {"data": {**WORDS["data"], "development": 2}}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Calls ``run_study.py`` with the options given, for a study that is changed in what is given."""
    for name in FOLDERS:
        monkeypatch.setenv(name, "")  # to be restored

    def call(change: dict[str, Any], *options: str) -> int:
        file = tmp_path / "mine.json"
        file.write_text(json.dumps({**WORDS, **change}), encoding="utf-8")
        places = ["-o", str(tmp_path / "output"), "--shared", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["run_study.py", str(file), *places, *options])
        return run_study.main()

    return call


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({}, ["--test"], "--test: mine has no development cases"),
        ({}, ["--mirrored"], "--mirrored: mine predicts with mirroring anyway"),
        ({"test_time_augmentation": False}, ["--no-mirrored"], "--no-mirrored: mine predicts without mirroring anyway"),
        ({}, ["--arms", "CAML"], "--arms CAML: the study mine has plain"),
        ({}, ["--against", "CAML"], "--against CAML: the study mine has plain"),
        ({"iterations": 99}, [], "99 iterations are no whole number of epochs of 50"),
    ],
)
def test_what_cannot_be_is_refused(command, capsys, change: dict, options: list[str], sentence: str):
    assert command(change, "--report", *options) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("run_study.py: ")
    assert sentence in printed.err
    assert not printed.out


@pytest.mark.parametrize("option", ["--plan", "--report"])
def test_a_wrong_arm_is_told_whatever_is_asked_for(command, capsys, option: str):
    assert command({"arms": {"a": {"trainer": "nnUNetTrainer", "attributes": {"train_step": 3}}}}, option) == 1
    assert capsys.readouterr().err.startswith("run_study.py: arm a: 'train_step' of nnUNetTrainer is no setting")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--keep", "--plan"], "argument --plan: not allowed with argument --keep"),
        (["--report", "--plan"], "argument --plan: not allowed with argument --report"),
        (["--keep", "--report"], "argument --report: not allowed with argument --keep"),
        (["--jobs", "0"], "argument --jobs: should be a whole number from 1, not '0'"),
        (["--threads", "0"], "argument --threads: should be a whole number from 1, not '0'"),
        (["--workers", "-1"], "argument --workers: should be a whole number from 0, not '-1'"),
        (["--jobs", "two"], "argument --jobs: should be a whole number from 1, not 'two'"),
    ],
)
def test_options_that_cannot_be_meant(command, capsys, options: list[str], sentence: str):
    with pytest.raises(SystemExit) as stopped:
        command({}, *options)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")


def test_a_mistaken_source_leaves_nothing_behind(tmp_path: Path, command, capsys):
    assert command({}, "--shared", str(tmp_path / "nowhere")) == 1
    assert f"{tmp_path / 'nowhere'} is no folder: say with --shared" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data": {"converter": "decathln.py", "source": "x"}}, "data: converter should be one of acdc.py, "),
        ({"data": {"converter": "", "source": "x"}}, "data: converter should be one of acdc.py, "),
        (
            {"configuration": {"name": "3d_fullres", "planner": "ExperimentPlaner"}},
            'configuration: nnU-Net has no planner "ExperimentPlaner".',
        ),
    ],
)
@pytest.mark.parametrize("option", ["--no-timing", "--plan"])
def test_what_cannot_be_prepared_is_told_first(tmp_path: Path, command, capsys, change: dict, sentence: str, option: str):
    assert command(change, "--shared", str(tmp_path), option) == 1
    assert capsys.readouterr().err.startswith(f"run_study.py: mine, {sentence}")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("option", ["--arms", "--against"])
def test_a_mistaken_arm_leaves_nothing_behind(tmp_path: Path, command, capsys, option: str):
    assert command({}, "--shared", str(tmp_path), option, "CAML") == 1
    assert capsys.readouterr().err.startswith(f"run_study.py: {option} CAML: the study mine has plain")
    assert not (tmp_path / "output").exists()


def test_a_folder_that_cannot_be_is_a_sentence(command, capsys):
    assert command({}, "--plan", "-o", "/dev/null/x") == 1
    assert capsys.readouterr().err == "run_study.py: /dev/null/x/trainers: Not a directory.\n"


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device."),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "cases.csv"), "cases.csv: Permission denied."),
        (FileNotFoundError("la_1.nii.gz is missing."), "la_1.nii.gz is missing."),
    ],
)
def test_what_cannot_be_written_or_read_is_a_sentence(command, capsys, monkeypatch, problem: OSError, sentence: str):
    def write(*_arguments: object) -> None:
        raise problem

    monkeypatch.setattr(report, "write", write)
    assert command({}, "--report") == 1
    assert capsys.readouterr().err == f"run_study.py: {sentence}\n"


def test_a_part_of_the_figures_is_kept(tmp_path: Path, command, capsys, monkeypatch):
    monkeypatch.setattr(run_study.kept, "KEPT", tmp_path / "kept")
    work, arms = Workspace(tmp_path / "output", tmp_path), ("plain", "other")
    for name in arms:
        for labeled in (4, 8):
            write_figures(work, Run(Arm(name, "nnUNetTrainer"), labeled, 0, 0), [0.5])
    change = {"labeled": [4, 8], "arms": {name: {"trainer": "nnUNetTrainer"} for name in arms}}
    assert command(change, "--keep", "--arms", "other", "--labeled", "8") == 0
    assert capsys.readouterr().out == f"1 files written to {tmp_path / 'kept' / 'mine'}.\n"
    assert [file.name for file in (tmp_path / "kept" / "mine").iterdir()] == ["other-8-subset0-seed0.csv"]


@pytest.mark.parametrize(
    ("change", "options", "folder"),
    [
        ({}, [], "report"),
        (DEVELOPMENT, [], "report"),
        (DEVELOPMENT, ["--test"], "report_test"),
        ({"test_time_augmentation": False}, ["--mirrored"], "report_mirrored"),
        ({}, ["--no-mirrored"], "report_not_mirrored"),
        ({**DEVELOPMENT}, ["--test", "--no-mirrored", "--largest"], "report_test_not_mirrored_largest"),
        ({**DEVELOPMENT, "test_time_augmentation": False}, ["--test", "--mirrored"], "report_test_mirrored"),
    ],
)
def test_what_can_be_is_done(tmp_path: Path, command, capsys, change: dict, options: list[str], folder: str):
    assert command(change, "--report", *options) == 0
    assert capsys.readouterr().out == "No run is finished yet.\n"
    assert [path.name for path in (tmp_path / "output").glob("report*")] == [folder]


@pytest.mark.parametrize(
    ("options", "name"),
    [([], "mine"), (["--device", "cuda"], "mine_gpu"), (["-o", "mine_gpu"], "mine_gpu"), (["-o", "x"], "mine")],
)
def test_figures_of_a_gpu_are_kept_by_themselves_wherever_they_are_measured(
    tmp_path: Path, command, capsys, monkeypatch, options: list[str], name: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_study.kept, "KEPT", tmp_path / "kept")
    assert command({}, "--keep", *options) == 0
    assert capsys.readouterr().out == f"0 files written to {tmp_path / 'kept' / name}.\n"


@pytest.mark.parametrize(
    ("problem", "status", "sentence"),
    [(CommandError("no luck"), 1, "run_study.py: no luck\n"), (KeyboardInterrupt(), 130, "The same command goes on from here")],
)
def test_a_run_that_fails(command, capsys, monkeypatch, problem: BaseException, status: int, sentence: str):
    def execute(*_arguments: object) -> None:
        raise problem

    for module, name in ((run_study, "write_trainers"), (run_study.data, "prepare"), (runs, "time_arms")):
        monkeypatch.setattr(module, name, lambda *_arguments: None)
    monkeypatch.setattr(runs, "execute", execute)
    monkeypatch.setattr(report, "write", lambda *_arguments: pytest.fail("a report of what has failed"))
    assert command({}) == status
    assert sentence in capsys.readouterr().err


def test_pseudo_labels_are_of_the_same_cases_and_seed(tmp_path: Path, monkeypatch):
    """A prediction says here which model made it, of which data set."""
    arms = (Arm("plain", "nnUNetTrainer"), Arm("pseudo", "nnUNetTrainer", pseudo_labels_from="plain"))
    s, work = study(labeled=(4,), subsets=(0, 1), seeds=(0, 1), arms=arms), Workspace(tmp_path, tmp_path)
    said: list[list[str]] = []

    def run(_work: Workspace, label: str, command: list[str], *_more: object) -> None:
        said.append(command)
        if command[0] == "nnUNetv2_predict":
            images, output = (Path(command[command.index(option) + 1]) for option in ("-i", "-o"))
            output.mkdir(parents=True)
            trainer, number = (command[command.index(option) + 1] for option in ("-tr", "-d"))
            for image in images.glob("*_0000.nii.gz"):
                text = f"{trainer} of {images.parent.name}, {number}"
                (output / image.name.replace("_0000", "")).write_text(text, encoding="utf-8")
        elif command[0] == "nnUNetv2_extract_fingerprint":
            (work.preprocessed / work.dataset(label)).mkdir(parents=True)

    monkeypatch.setattr(Workspace, "run", run)
    monkeypatch.setattr(runs, "measure", lambda *_arguments: None)
    for subset in (0, 1):
        raw = work.raw / work.dataset(f"Labeled4Subset{subset}")
        for name in ("imagesTr/tr_0000", "labelsTr/tr", "imagesUn/un_0000", "imagesTs/ts_0000", "labelsTs/ts"):
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            (raw / f"{name}.nii.gz").write_text("of an expert", encoding="utf-8")
        (raw / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "labels": {"organ": 1}}), encoding="utf-8")

    for r in (r for r in s.runs() if r.arm.name == "pseudo"):
        said.clear()
        runs.execute(s, work, r)
        own = work.raw / work.dataset(f"pseudo_Labeled4Subset{r.subset}_Seed{r.seed}")
        labels = {path.name: path.read_text(encoding="utf-8") for path in (own / "labelsTr").iterdir()}
        few = work.dataset(f"Labeled4Subset{r.subset}")
        number = str(work.dataset_id(f"Labeled4Subset{r.subset}"))
        assert labels == {"tr.nii.gz": "of an expert", "un.nii.gz": f"Study_plain_seed{r.seed} of {few}, {number}"}
        assert sorted(path.name for path in (own / "imagesTr").iterdir()) == ["tr_0000.nii.gz", "un_0000.nii.gz"]
        move = next(c for c in said if c[0] == "nnUNetv2_move_plans_between_datasets")
        assert move[1:5] == ["-s", number, "-t", str(work.dataset_id(own.name.split("_", 1)[1]))]
        train = next(c for c in said if c[0] == "nnUNetv2_train")
        assert train[1] == move[4]
        assert train[train.index("-tr") + 1] == f"Study_pseudo_seed{r.seed}"
        predict = said[-1]
        assert predict[predict.index("-i") + 1] == str(work.raw / few / "imagesTs")
        assert predict[predict.index("-d") + 1] == move[4]


class Trainer:
    """As much of nnU-Net's as a schedule is mixed into; its epochs took 8, 4, 6, 5 and 3 s."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device) -> None:
        self.device, self.output_folder, self.current_epoch = device, plans["folder"], 1
        times = {"epoch_start_timestamps": [0, 10, 20, 30, 40], "epoch_end_timestamps": [8, 14, 26, 35, 43]}
        self.logger = SimpleNamespace(get_value=lambda key, step: times[key])

    def train_step(self, batch: dict) -> dict:
        return batch

    def on_train_start(self) -> None:
        pass

    def on_train_epoch_start(self) -> None:
        pass

    def on_epoch_end(self) -> None:
        self.logger.plot_progress_png(self.output_folder)
        progress.plot(self.logger, Path(self.output_folder))

    def on_train_end(self) -> None:
        pass


def scheduled(folder: Path, seed: int = 0, epochs: int = 5) -> Any:
    attributes = {"study_epochs": epochs, "study_iterations": 10, "study_seed": seed}
    kind: Any = type("Mine", (Scheduled, Trainer), attributes)
    return kind({"folder": str(folder)}, "3d_fullres", 0, {}, torch.device("cpu"))


def test_the_seed_of_a_training(tmp_path: Path):
    drawn = []
    for seed in (3, 4, 3):
        scheduled(tmp_path, seed)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[2]
    assert all(a != b for a, b in zip(*drawn[:2], strict=True)), "of everything that draws"


def test_what_a_training_cost(tmp_path: Path, monkeypatch):
    """A training that was continued after its first epoch, and compiled its networks anew in the next."""
    clock = iter([100.0, 103.0, 200.0, 201.0, 300.0, 302.0, 400.0, 400.5])
    monkeypatch.setattr(schedules, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(schedules, "peak_bytes", lambda: 2**30)
    trainer = scheduled(tmp_path)
    began_with = {"commit": "of then"}
    monkeypatch.setattr(schedules, "made_with", lambda _device: began_with)
    trainer.on_train_start()
    monkeypatch.setattr(schedules, "made_with", lambda _device: {"commit": "committed since"})
    for _ in range(4):
        trainer.on_train_epoch_start()
        assert trainer.train_step({"a": 1}) == {"a": 1}
    trainer.on_train_end()
    cost = json.loads((tmp_path / COST).read_text(encoding="utf-8"))
    assert cost.pop("made_with") == began_with
    assert cost == {
        "iteration_s": 5 / 10,  # the median of the second half of the epochs
        "training_s": 26.0,
        "iterations": 50,
        "epochs_in_this_process": 4,
        "step_s": pytest.approx(3.5 / 30),
        "peak_memory_bytes": 2**30,
    }


def test_a_continued_training_sees_other_patches(tmp_path: Path):
    drawn = []
    for epoch in (0, 1, 3, 3):
        trainer = scheduled(tmp_path, 7)
        trainer.current_epoch = epoch
        trainer.on_train_start()
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[2] == drawn[3]
    for generator in range(3):
        assert len({numbers[generator] for numbers in drawn}) == 3


def test_pictures_are_drawn_about_ten_times(tmp_path: Path, monkeypatch):
    drawn: list[tuple[int, str]] = []
    trainer = scheduled(tmp_path, epochs=25)
    monkeypatch.setattr(
        trainer.logger, "plot_progress_png", lambda _f: drawn.append((trainer.current_epoch, "V")), raising=False
    )
    monkeypatch.setattr(progress, "plot", lambda *_arguments: drawn.append((trainer.current_epoch, "CAML")))
    for trainer.current_epoch in range(25):
        trainer.on_epoch_end()
    assert drawn == [(epoch, name) for epoch in (*range(1, 24, 2), 24) for name in ("V", "CAML")]


def test_workers_are_as_many_as_there_are_cores_for(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert [run_study.workers_of("cuda", jobs) for jobs in (1, 2, 4, 16)] == [7, 3, 1, 1]
    assert run_study.workers_of("cpu", 1) == 0


def test_seconds_of_an_iteration_are_those_of_the_arm(tmp_path: Path):
    """Of its teacher, where an arm has pseudo-labels; of its training for timing, as long as there is no other."""
    arms = (
        Arm("plain", "nnUNetTrainer"),
        Arm("CAML", "nnUNetTrainerCAML"),
        Arm("p", "nnUNetTrainer", pseudo_labels_from="plain"),
    )
    s, work = study(arms=arms), Workspace(tmp_path, tmp_path)

    def took(r: Run, seconds: float) -> None:
        file = runs.model_folder(s, work, r) / "fold_all" / COST
        file.parent.mkdir(parents=True)
        # the mean of all 100 iterations of a run is less than what one takes later on
        file.write_text(
            json.dumps({"iteration_s": seconds * (2 if r.seed >= 0 else 1), "training_s": 100 * seconds, "iterations": 100})
        )

    took(Run(arms[1], 8, 0, -1), 3.0)
    assert [runs.iteration_seconds(s, work, arm) for arm in arms] == [None, 3.0, None]
    took(Run(arms[0], 8, 0, 0), 2.0)
    took(Run(arms[1], 4, 0, 0), 4.0)
    assert [runs.iteration_seconds(s, work, arm) for arm in arms] == [2.0, 4.0, 2.0]


def test_the_largest_component_of_each_class_is_kept_by_nnunets_command(planned, tmp_path: Path):
    predicted = np.zeros((12, 12, 12), np.uint8)
    predicted[1:5, 1:5, 1:5] = 1
    predicted[8:10, 8:10, 8:10] = 1
    predicted[5:8, 1:3, 1:3] = 2
    predicted[11, 11, 11] = 2
    work = Workspace(tmp_path, tmp_path, measurement=Measurement(test=True, largest=True))
    folder = work.with_all_components().measured("predictions") / "CAML-2-subset0-seed0"
    write_image(predicted, folder / "a.nii.gz")
    write_image(predicted * 0, folder / "b.nii.gz")
    shutil.copy(planned.preprocessed / "nnUNetPlans.json", folder / "plans.json")
    shutil.copy(planned.raw / "dataset.json", folder)
    kept = runs._keep_largest(work, folder, {"front": 1, "back": 2})
    assert kept == tmp_path / "predictions_test_largest" / folder.name
    predicted[8:10, 8:10, 8:10] = predicted[11, 11, 11] = 0
    for name, expected in (("a", predicted), ("b", predicted * 0)):
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(kept / f"{name}.nii.gz"))), expected)
