"""Studies that are ended from outside, at a bad moment."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pytest
import torch
from study_helpers import study as small_study
from test_run_study import WORDS

import run_study
import study.schedules
from nnunet_caml.demo.commands import CommandError
from study.commands import FOLDERS, Workspace
from study.description import Run, Study
from study.schedules import Scheduled

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


class Trainer:
    """Saves as nnU-Net does, in place."""

    dies = False

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device):
        self.device = device

    def save_checkpoint(self, filename: str) -> None:
        Path(filename).write_text("half", encoding="utf-8")
        if self.dies:
            raise KeyboardInterrupt
        Path(filename).write_text("whole", encoding="utf-8")


def scheduled(**attributes: Any) -> Any:
    kind: Any = type("Mine", (Scheduled, Trainer), {"study_epochs": 5, "study_iterations": 4, **attributes})
    return kind({}, "3d_fullres", 0, {}, torch.device("cpu"))


def test_a_kill_leaves_the_checkpoint_before(tmp_path: Path):
    """Of an arm that is plain nnU-Net, with which it could not be continued otherwise."""
    file = tmp_path / "checkpoint_latest.pth"
    trainer = scheduled()
    trainer.save_checkpoint(str(file))
    assert [(f.name, f.read_text(encoding="utf-8")) for f in tmp_path.iterdir()] == [(file.name, "whole")]
    file.write_text("before", encoding="utf-8")
    trainer.dies = True
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(file))
    assert file.read_text(encoding="utf-8") == "before"


def test_what_saves_whole_files_itself_is_left_alone(tmp_path: Path, monkeypatch):
    saved: list[str] = []
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda _self, filename: saved.append(filename))
    scheduled(caml=None).save_checkpoint("x.pth")
    assert saved == ["x.pth"]


@pytest.mark.parametrize(("parent", "watched"), [(os.getppid(), True), (1 + os.getppid(), False), (None, False)])
def test_a_training_ends_with_its_study_alone(monkeypatch, parent: int | None, watched: bool):
    """Not with a shell in which its command was typed."""
    ends_with: list[int] = []
    monkeypatch.setattr(study.schedules, "end_with", ends_with.append)
    monkeypatch.delenv("STUDY_PROCESS", raising=False)
    if parent is not None:
        monkeypatch.setenv("STUDY_PROCESS", str(parent))
    scheduled()
    assert ends_with == [os.getppid()] * watched


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Where runs are all that is left to do."""
    for module, name in ((run_study.made_from, "record"), (run_study, "write_trainers"), (run_study.data, "prepare")):
        monkeypatch.setattr(module, name, lambda *_: None)
    return Workspace(tmp_path, tmp_path)


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_is_begun_after_a_run_that_failed(work: Workspace, monkeypatch, jobs: int):
    """What runs beside it is finished."""
    s = small_study(seeds=(0, 1))
    first, together, begun = [r.name for r in s.runs()[:jobs]], threading.Barrier(jobs), set()

    def execute(_study: Study, _work: Workspace, r: Run) -> None:
        begun.add(r.name)
        if r.name in first:
            together.wait(60)
        if r.name == first[0]:
            raise CommandError("no luck")
        time.sleep(0.5)

    def late(futures: list[Future]) -> Iterator[Future]:
        for future in as_completed(futures):
            time.sleep(0.2)
            yield future

    monkeypatch.setattr(run_study, "as_completed", late)
    monkeypatch.setattr(run_study.runs, "execute", execute)
    with pytest.raises(CommandError, match="no luck"):
        run_study.run(s, work, s.runs(), jobs, timing=False)
    assert begun == set(first)


def test_a_signal_ends_what_is_finished_beside_a_run_that_failed(work: Workspace, monkeypatch):
    s = small_study(arms=small_study().arms[:1])
    together, stopped = threading.Barrier(2), []

    def execute(_study: Study, work: Workspace, r: Run) -> None:
        together.wait(60)
        if r.labeled == 4:
            raise CommandError("no luck")
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        stopped.append(work.stop.wait(20))

    monkeypatch.setattr(run_study.runs, "execute", execute)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_study.run(s, work, s.runs(), 2, timing=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped == [True]


def test_a_run_that_waits_for_another_process_ends_with_its_study(work: Workspace):
    with ThreadPoolExecutor(1) as pool, work.alone("a run"):
        waiting = pool.submit(work.alone("a run").__enter__)
        time.sleep(0.5)
        work.stop.set()
        with pytest.raises(CommandError):
            waiting.result(20)


def test_a_second_signal_does_not_disturb_what_the_first_one_ends(tmp_path: Path, monkeypatch, capsys):
    """As where a terminal is closed, or by timeout."""
    (tmp_path / "mine.json").write_text(json.dumps(WORDS), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["run_study.py", str(tmp_path / "mine.json"), "-o", str(tmp_path), "--shared", "/"])
    for name in FOLDERS:
        monkeypatch.setenv(name, "")  # to be restored
    tidied_up = []

    def run(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(60)
        finally:
            for number in (signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)
                time.sleep(0.1)
            tidied_up.append(True)

    monkeypatch.setattr(run_study, "run", run)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        assert run_study.main() == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert tidied_up == [True]
    assert "The same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "number", "ignored"),
    [
        ("data.prepare", signal.SIGTERM, False),
        ("data.prepare", signal.SIGHUP, False),
        ("data.prepare", signal.SIGHUP, True),
        ("runs.execute", signal.SIGTERM, False),  # which a thread of its own waits for
    ],
)
def test_nothing_runs_on_when_a_study_is_ended(tmp_path: Path, part: str, number: signal.Signals, ignored: bool):
    """Which the end of a session is not for what was started with nohup."""
    (tmp_path / "mine.json").write_text(json.dumps(WORDS), encoding="utf-8")
    (tmp_path / "sleep.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(100)\n", encoding="utf-8"
    )
    (tmp_path / "start.py").write_text(
        "import signal, sys, run_study\n"
        f"signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'})\n"  # the tests may run under nohup
        "run_study.data.prepare = lambda *_: None\n"
        f"run_study.{part} = lambda study, work, _: work.run('x', ['python', 'sleep.py'])\n"
        "sys.argv = ['run_study.py', 'mine.json', '-o', 'output', '--shared', '.', '--no-timing']\n"
        "sys.exit(run_study.main())\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([sys.executable, "start.py"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as process:
        pid = tmp_path / "pid"
        end = time.monotonic() + 120
        while not (pid.is_file() and pid.read_text(encoding="utf-8")):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"The same command goes on from here" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text(encoding="utf-8")), 0)
