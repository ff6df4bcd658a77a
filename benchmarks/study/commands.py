"""The commands of a study, run as a user would, each with its log file."""

import copy
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from time import monotonic
from typing import IO

from nnunet_caml.demo.commands import CommandError, CommandLine, TrainingWatch, Watch

__all__ = ["Measurement", "Workspace", "replace_text", "silent"]

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def silent(line: str) -> None:
    """A watch with no news."""


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, so that whoever reads it meanwhile finds the old or the new one."""
    half = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


class _Terminal(CommandLine):
    """Lines begin with the time and with what they belong to, because several runs may speak at once."""

    label = ""

    def say(self, text: str) -> None:
        seconds = int(monotonic() - self.began)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        print(f"[{clock}] {self.label}: {text}", flush=True)


@dataclass(frozen=True)
class Measurement:
    """On what the finished models of a study are measured; each way has folders of its own.

    Args:
        test: Models of a study with development cases are measured on the test cases instead.
        mirrored: Whether cases are predicted with mirroring; ``None`` is as the study says.
        largest: Of each class only the largest component of a prediction counts.
    """

    test: bool = False
    mirrored: bool | None = None
    largest: bool = False

    @property
    def ending(self) -> str:
        """Of the names of its folders."""
        how = {None: "", True: "_mirrored", False: "_not_mirrored"}[self.mirrored]
        return "_test" * self.test + how + "_largest" * self.largest

    @property
    def words(self) -> str:
        """What is said of the predictions, as the end of a list."""
        how = {None: "", True: ", mirrored in prediction", False: ", not mirrored in prediction"}[self.mirrored]
        return how + ", the largest component of each class" * self.largest


class Workspace:
    """A folder with all that a study makes, and the variables for commands in it.

    Args:
        folder: Work folder of one study.
        shared: Folder of the source data.
        device: ``cpu`` or ``cuda``.
        threads: Of torch in each command, on a CPU.
        workers: Processes that load data; 0 loads in the training process itself.
        measurement: Of finished models.
    """

    def __init__(
        self,
        folder: Path,
        shared: Path,
        device: str = "cpu",
        threads: int = 1,
        workers: int = 0,
        measurement: Measurement = Measurement(),
    ) -> None:
        self.folder = folder.resolve()
        self.shared = shared.resolve()
        self.device = device
        self.workers = workers
        #: that preprocess and measure; a machine with a GPU has cores to spare
        self.processes = 2 if device == "cpu" else os.cpu_count() or 2
        self.measurement = measurement
        self.began = monotonic()
        #: once it is set, commands that run in whatever thread are ended
        self.stop = Event()
        self.trainers = self.folder / "trainers"
        self.trainers.mkdir(parents=True, exist_ok=True)
        self.variables = {name: str(self.folder / name) for name in FOLDERS} | {
            "nnUNet_extTrainer": str(self.trainers),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "benchmarks"), *_python_path()]),
            "nnUNet_wandb_enabled": "0",
            "nnUNet_def_n_proc": str(self.processes),
            "STUDY_PROCESS": str(os.getpid()),
        }
        if device == "cpu":
            self.variables |= {
                "nnUNet_compile": "F",
                "OMP_NUM_THREADS": str(threads),
                "OMP_WAIT_POLICY": "PASSIVE",
                "STUDY_THREADS": str(threads),
            }

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Waits until nobody else does this in the work folder, be it in this process or in another one.

        Raises:
            CommandError: The waiting was stopped.
        """
        path = self.folder / "locks" / what
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            if what == "dataset_ids":  # for a moment
                fcntl.flock(file, fcntl.LOCK_EX)
            elif not _locked(file):
                print(f"Waiting for another process that works at {what} in {self.folder}.", file=sys.stderr, flush=True)
                while not _locked(file):  # a thread that waits in flock hears of nothing
                    if self.stop.wait(1):
                        raise CommandError(f"The wait for {what} was stopped, as everything here.")
            yield

    def measured(self, name: str) -> Path:
        """Folder for what depends on the cases that models are measured on, and on how these are predicted."""
        return self.folder / f"{name}{self.measurement.ending}"

    def with_all_components(self) -> "Workspace":
        """The same for predictions as they are."""
        other = copy.copy(self)
        other.measurement = replace(self.measurement, largest=False)
        return other

    @property
    def raw(self) -> Path:
        """nnU-Net's raw data sets."""
        return self.folder / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        """nnU-Net's preprocessed data sets."""
        return self.folder / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        """nnU-Net's trained models."""
        return self.folder / "nnUNet_results"

    def dataset_id(self, name: str) -> int:
        """A number for a data set of this study, the same at every call."""
        path = self.folder / "dataset_ids.json"
        with self.alone("dataset_ids"):
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if name not in known:
                known[name] = len(known) + 1
                replace_text(path, json.dumps(known, indent=2) + "\n")
            return known[name]

    def dataset(self, name: str) -> str:
        """nnU-Net's name of that data set."""
        return f"Dataset{self.dataset_id(name):03d}_{name}"

    def run(
        self, label: str, command: Sequence[str], watch: Watch = silent, variables: Mapping[str, str] | None = None
    ) -> float:
        """Runs a command; its output goes to ``logs/LABEL.COMMAND.txt``.

        Returns:
            Seconds that it took.

        Raises:
            CommandError: It failed, or was stopped.
        """
        terminal = _Terminal(self.variables, self.folder / "logs", silence_s=300.0, began=self.began, stop=self.stop)
        terminal.label = label
        script = Path(command[1]).stem if command[0] == "python" else command[0]
        return terminal.run(command, f"{label}.{script}.txt", watch, variables)

    def convert(self, label: str, script: str, *arguments: str) -> None:
        """Runs a script of ``dataset_conversion/``."""
        self.run(label, ["python", str(REPOSITORY / "dataset_conversion" / script), *arguments])


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _python_path() -> list[str]:
    return [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]


def training_watch(epochs: int) -> Watch:
    """News of a training, at most about twenty lines of it."""
    inner = TrainingWatch(epochs)
    step = max(1, epochs // 20)

    def watch(line: str) -> str | None:
        news = inner(line)
        if news is None or (news.startswith("epoch") and inner.epoch % step and inner.epoch != epochs):
            return None
        return news

    return watch
