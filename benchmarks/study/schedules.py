"""What a study adds to a trainer: its length, its seed, what it cost, and a look at CAML's auxiliary network.

``write_trainers`` writes the arms as classes into a file that nnU-Net finds, each a few lines, as a user would.
"""

import json
import os
import random
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path
from time import perf_counter
from types import NoneType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from nnunet_caml.networks import make_auxiliary, unwrap
from nnunet_caml.workers import end_with
from process_memory import peak_bytes
from study.commands import replace_text
from study.description import Arm, Run, Study, StudyError, fits, shown, words
from study.provenance import MADE_WITH, made_with

__all__ = ["AuxiliaryNetwork", "Scheduled", "find_trainer", "trainer_classes", "trainer_name", "write_trainers"]

COST = "cost.json"
#: Epochs and iterations of each, of a training that only serves to time an arm. The median of the last three counts: in the
#: first of these, unlabelled patches come in, and networks may be compiled anew. On a GPU each epoch is five times as long,
#: because worker processes have batches in store at first.
TIMING = (5, 4)


class Scheduled:
    """Mixed into a trainer: a short schedule and a seed; the rest of nnU-Net's recipe follows from it.

    Attributes:
        study_epochs: Length of the training.
        study_iterations: Of an epoch.
        study_seed: Of weights, patches and augmentation. nnU-Net itself does not seed. Exact only where patches are loaded
            in the training process and the run is not interrupted.
        study_keeps_auxiliary: Saves A as a model of its own, for watching.
    """

    study_epochs: int
    study_iterations: int
    study_seed: int = 0
    study_keeps_auxiliary: bool = False

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)  # type: ignore[call-arg]
        self.num_epochs = self.study_epochs
        timing_on_gpu = device.type == "cuda" and (self.study_epochs, self.study_iterations) == TIMING
        self.num_iterations_per_epoch = self.study_iterations * (5 if timing_on_gpu else 1)
        self.num_val_iterations_per_epoch = 2
        # 50 is nnU-Net's; time on a GPU is lent in pieces
        self.save_every = max(1, min(50, self.study_epochs // (20 if device.type == "cuda" else 10)))
        self._draw_every = max(1, self.study_epochs // 10)
        self._step_s: list[float] = []  # of each epoch in this process
        if os.environ.get("STUDY_PROCESS") == str(os.getppid()):
            end_with(os.getppid())  # or the study, killed and started again, would train into the same folder twice
        if "STUDY_THREADS" in os.environ:
            torch.set_num_threads(int(os.environ["STUDY_THREADS"]))
        self._seed(self.study_seed)

    def _seed(self, number: int) -> None:
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)

    def initialize(self) -> None:
        super().initialize()  # type: ignore[misc]
        if self.device.type == "cpu":  # type: ignore[attr-defined]
            # The same convolutions in four fifths of the time.
            is_3d = len(self.configuration_manager.patch_size) == 3  # type: ignore[attr-defined]
            layout = torch.channels_last_3d if is_3d else torch.channels_last
            for network in (self.network, getattr(getattr(self, "caml", None), "auxiliary", None)):  # type: ignore[attr-defined]
                if network is not None:
                    network.to(memory_format=layout)

    def train_step(self, batch: dict) -> dict:
        began = perf_counter()
        result = super().train_step(batch)  # type: ignore[misc]
        self._step_s[-1] += perf_counter() - began
        return result

    def on_train_epoch_start(self) -> None:
        self._step_s.append(0.0)
        if self.device.type == "cuda" and self.current_epoch == self.num_epochs - 1:  # type: ignore[attr-defined]
            # cuDNN tries ways that need more than the one which it takes
            torch.cuda.reset_peak_memory_stats()
        super().on_train_epoch_start()  # type: ignore[misc]

    def on_epoch_end(self) -> None:
        """Draws nnU-Net's and CAML's pictures about ten times: they take longer than a short epoch."""
        epoch = self.current_epoch + 1  # type: ignore[attr-defined]
        if epoch % self._draw_every == 0 or epoch == self.num_epochs:
            super().on_epoch_end()  # type: ignore[misc]
            return
        with patch.object(self.logger, "plot_progress_png"), patch("nnunet_caml.progress.plot"):  # type: ignore[attr-defined]
            super().on_epoch_end()  # type: ignore[misc]

    def save_checkpoint(self, filename: str) -> None:
        """Whole or not at all: nnU-Net writes in place, and a training that is killed meanwhile could not be continued."""
        half = Path(f"{filename}.half")
        super().save_checkpoint(filename if hasattr(self, "caml") else str(half))  # type: ignore[misc]
        if half.is_file():
            half.replace(filename)

    def on_train_end(self) -> None:
        super().on_train_end()  # type: ignore[misc]
        peak = peak_bytes()
        if self.device.type == "cuda":  # type: ignore[attr-defined]
            peak = torch.cuda.max_memory_allocated()
        started, ended = (
            self.logger.get_value(f"epoch_{which}_timestamps", step=None)  # type: ignore[attr-defined]
            for which in ("start", "end")
        )
        last = float(np.median(np.subtract(ended, started)[len(ended) // 2 :]))
        cost: dict[str, Any] = {
            # with loading, and with nnU-Net's look at validation patches
            "iteration_s": last / self.num_iterations_per_epoch,
            "training_s": float(np.sum(np.subtract(ended, started))),
            "iterations": self.num_epochs * self.num_iterations_per_epoch,
            "epochs_in_this_process": self.num_epochs - self._first_epoch,
        }
        if self._step_s:
            # networks are compiled in the first epoch
            epochs = self._step_s[1:] or self._step_s
            cost |= {"step_s": float(np.mean(epochs)) / self.num_iterations_per_epoch, "peak_memory_bytes": peak}
        folder = Path(self.output_folder)  # type: ignore[attr-defined]
        if self.study_keeps_auxiliary:
            save_auxiliary(self, folder)
        cost[MADE_WITH] = self._made_with
        # last, because with this file a run counts as trained
        replace_text(folder / COST, json.dumps(cost) + "\n")

    def on_train_start(self) -> None:
        epoch = self.current_epoch  # type: ignore[attr-defined]
        if epoch:  # or a continued training would see the patches of its first epochs again; CAML restores its generators
            self._seed(1000 * epoch + self.study_seed)
        super().on_train_start()  # type: ignore[misc]
        self._first_epoch = self.current_epoch  # type: ignore[attr-defined]
        self._made_with = made_with(self.device)  # type: ignore[attr-defined]  # hours later the repository may be another one

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Left out: with fold ``all`` it would segment the training cases."""


def save_auxiliary(trainer: Any, folder: Path) -> None:
    """Writes A as a checkpoint of the class ``<trainer>_auxiliary``, beside the trainer's own model."""
    name = type(trainer).__name__
    model = folder.parent
    target = model.parent / model.name.replace(name, f"{name}_auxiliary", 1)
    (target / folder.name).mkdir(parents=True, exist_ok=True)
    for file in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        if (model / file).is_file():
            shutil.copy(model / file, target / file)
    checkpoint = torch.load(folder / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    checkpoint["network_weights"] = unwrap(trainer.caml.auxiliary).state_dict()
    checkpoint["trainer_name"] = f"{name}_auxiliary"
    half = target / folder.name / "checkpoint_final.tmp"
    torch.save(checkpoint, half)
    half.replace(half.with_suffix(".pth"))


class AuxiliaryNetwork:
    """Mixed into a CAML trainer: prediction builds A."""

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> torch.nn.Module:
        """In place of nnU-Net's static method of this name, which tells its forms apart by the names of the arguments."""
        caml: Any = cls
        network = super().build_network_architecture(  # type: ignore[misc]
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return make_auxiliary(
            network, caml.attention_heads, caml.attention_dropout, caml.attention, caml.attention_downsampling
        )


def trainer_name(run: Run) -> str:
    """Name of the class that ``write_trainers`` writes for a run; with seed -1, that of the one for timing."""
    number = f"_{run.labeled}" if str(run.labeled) in run.arm.by_labeled else ""
    return f"Study_{run.arm.slug}{number}_timing" if run.seed < 0 else f"Study_{run.arm.slug}{number}_seed{run.seed}"


def find_trainer(name: str) -> type:
    """A trainer that a study may name: nnU-Net's, this package's, or one of the benchmarks.

    Raises:
        StudyError: There is no such trainer.
    """
    # imported here: they take seconds, and a report needs none of them
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_caml import trainer, variants
    from study import baselines, trials

    known = {"nnUNetTrainer": nnUNetTrainer}
    for place in (variants, trainer, trials, baselines):
        known |= {key: value for key, value in vars(place).items() if key.startswith("nnUNetTrainer")}
    if name not in known:
        raise StudyError(f"trainer {name!r} is unknown; there are {', '.join(sorted(known))}.")
    return known[name]


def trainer_classes(study: Study) -> dict[str, list[str]]:
    """Lines of the classes of a study by their names: one per arm and seed, and per number of labels where that matters.

    Raises:
        StudyError: An arm names a trainer that does not exist, or a setting that this does not have, or has of another type;
            or two arms would have a class of the same name.
    """
    for arm in study.arms:
        _check_arm(arm)
    classes: dict[str, list[str]] = {}
    arms: dict[str, str] = {}
    for run in study.runs():
        attributes = {**run.arm.attributes, **run.arm.by_labeled.get(str(run.labeled), {})}
        for seed in (-1, run.seed):
            name = trainer_name(replace(run, seed=seed))
            epochs, iterations = TIMING if seed < 0 else (study.epochs(run.arm), study.iterations_per_epoch)
            auxiliary = run.arm.auxiliary and seed >= 0
            lines = [
                "",
                f'class {name}(Scheduled, find_trainer("{run.arm.trainer}")):',
                f"    study_epochs = {epochs}",
                f"    study_iterations = {iterations}",
                f"    study_seed = {max(seed, 0)}",
                f"    study_keeps_auxiliary = {auxiliary}",
                *(f"    {key} = {value!r}" for key, value in attributes.items()),
                "",
            ]
            if auxiliary:
                lines += ["", f"class {name}_auxiliary(AuxiliaryNetwork, {name}):", "    pass", ""]
            first = arms.setdefault(name, run.arm.name)
            if classes.setdefault(name, lines) != lines:
                raise StudyError(
                    f"arms {first} and {run.arm.name} would both be trained by a class {name}: give one of them another name."
                )
    return classes


def _check_arm(arm: Arm) -> None:
    from nnunet_caml.trainer import nnUNetTrainerCAML  # imported here, as in find_trainer

    where = f"arm {arm.name}"
    try:
        trainer = find_trainer(arm.trainer)
    except StudyError as error:
        raise StudyError(f"{where}: {error}") from error
    if arm.auxiliary and not issubclass(trainer, nnUNetTrainerCAML):
        raise StudyError(f"{where}: auxiliary should be false with {arm.trainer}, which has no network A.")
    for attributes in (arm.attributes, *arm.by_labeled.values()):
        for key, value in attributes.items():
            if not hasattr(trainer, key) and not hasattr(Scheduled, key):
                raise StudyError(f"{where}: {arm.trainer} has no attribute {key!r}.")
            default = getattr(trainer if hasattr(trainer, key) else Scheduled, key)
            if key.startswith("_") or not isinstance(default, str | int | float | NoneType):
                raise StudyError(f"{where}: {key!r} of {arm.trainer} is no setting: those are numbers, texts, true or false.")
            if default is not None and not fits(value, type(default)):
                raise StudyError(f"{where}: {key} of {arm.trainer} should be {words(type(default))}, not {shown(value)}.")


def write_trainers(study: Study, folder: Path) -> None:
    """Writes ``study_trainers.py``, with the classes of a study.

    Raises:
        StudyError: As of :func:`trainer_classes`.
    """
    lines = [
        f'"""Trainers of the study {study.name}; written by benchmarks/run_study.py."""',
        "",
        "from study.schedules import AuxiliaryNetwork, Scheduled, find_trainer",
        "",
        *chain.from_iterable(trainer_classes(study).values()),
    ]
    replace_text(folder / "study_trainers.py", "\n".join(lines))
