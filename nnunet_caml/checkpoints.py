"""Companion files of checkpoints: what a run needs to continue beyond what nnU-Net's checkpoint holds.

``checkpoint_latest.pth`` is nnU-Net's own, written by nnU-Net. Beside it lies ``checkpoint_latest_caml_0050.pth`` with A,
heads, memory, their optimiser and the state of the random number generators, as plain tensors. It is a file of its own so
that prediction reads not a byte more than with stock nnU-Net.

Both are written under temporary names and moved into place, companion first; older companions are removed last. The
companion's name carries the epoch that nnU-Net's checkpoint resumes at, so at every moment the checkpoint on disk has its
companion on disk, whenever a run is killed that has begun in this folder, or with ``--c``.
"""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch

from nnunet_caml.errors import StorageError, UserError, is_full
from nnunet_caml.learning import MutualLearning
from nnunet_caml.networks import unwrap

#: of a companion file, see companion_state and save
PARTS = {"auxiliary", "heads", "memory", "cases", "optimizer", "rng", "settings", "run"}


class CompanionError(UserError, ValueError):
    """Why the companion of a checkpoint is of no use, as the end of a sentence. Harmless but for training."""


class SettingsError(CompanionError):
    """The companion is of a trainer with other settings, and intact."""


def companion(checkpoint: Path, next_epoch: int) -> Path:
    """Path of the companion of a checkpoint that resumes at ``next_epoch``."""
    return checkpoint.with_name(f"{checkpoint.stem}_caml_{next_epoch:04d}.pth")


def companions(checkpoint: Path) -> list[Path]:
    """All companions of a checkpoint that are on disk, older ones and what a kill left of them too."""
    return sorted(f for ending in ("", ".partial") for f in checkpoint.parent.glob(f"{checkpoint.stem}_caml_*.pth{ending}"))


def remove_companions(checkpoint: Path, keep: Path | None = None) -> None:
    """Removes the companions of a checkpoint but ``keep``."""
    for file in companions(checkpoint):
        if file != keep:
            file.unlink(missing_ok=True)


def tidy_up(folder: Path) -> None:
    """Removes what a finished training has no use for: companions of ``checkpoint_latest.pth``, and what a kill has left."""
    remove_companions(folder / "checkpoint_latest.pth")
    for file in folder.glob("checkpoint_*.pth.partial"):
        file.unlink(missing_ok=True)


def other_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What has changed since ``before`` was recorded, such as ``lambda_c (1.0, now 0.5)``; empty if nothing has."""
    changed = {name: (before[name], value) for name, value in now.items() if name in before and before[name] != value}
    return ", ".join(f"{name} ({old!r}, now {new!r})" for name, (old, new) in changed.items())


def why_not_continued(problem: CompanionError, checkpoint: Path, next_epoch: int, changed: str) -> str:
    """Sentences on a training that cannot be continued, with the way out.

    Args:
        problem: With its companion.
        checkpoint: nnU-Net's file.
        next_epoch: That it resumes at.
        changed: From :func:`other_settings`.
    """
    file = companion(checkpoint, next_epoch)
    if isinstance(problem, SettingsError):
        which = f", {changed}" if changed else ""
        return (
            f"{file} {problem}{which}, so this training cannot be continued with the present ones. Put back the settings that "
            f"it was begun with, or start again without --c."
        )
    return (
        f"{file} {problem}, so the auxiliary network of this training is lost and it cannot be continued. Put back the file, "
        f"or start again without --c.{go_on_from_best(checkpoint)}"
    )


def go_on_from_best(damaged: Path) -> str:
    """How to go on from ``checkpoint_best.pth`` if ``damaged`` has no use; empty if that one has no companion either."""
    best = damaged.with_name("checkpoint_best.pth")
    if damaged == best or not best.is_file() or not any(file.suffix == ".pth" for file in companions(best)):
        return ""
    return f" Or, to go on from {best.name} with --c, move {damaged.name} away."


def run_token(logger: Any) -> list[float]:
    """Tells runs apart that share an epoch number: when the logged epochs ended."""
    return [float(t) for t in logger.get_value("epoch_end_timestamps", step=None)]


def save(checkpoint: Path, save_stock: Callable[[str], None], state: dict, logger: Any) -> None:
    """Saves nnU-Net's checkpoint and its companion so that a kill at any moment leaves a pair that fits.

    Args:
        checkpoint: nnU-Net's file.
        save_stock: nnU-Net's ``save_checkpoint``.
        state: For the companion.
        logger: nnU-Net's.

    Raises:
        StorageError: No space is left. The pair of before is still there.
    """
    temporary = checkpoint.with_suffix(".pth.partial")
    run = run_token(logger)
    path = companion(checkpoint, len(run))
    partial = path.with_suffix(".pth.partial")
    try:
        save_stock(str(temporary))
        torch.save({**state, "run": run}, partial)
    except (OSError, RuntimeError) as error:
        folder = checkpoint.parent
        full = is_full(folder, error)
        for half in (temporary, partial):
            half.unlink(missing_ok=True)
        if not full:
            raise
        free = shutil.disk_usage(folder).free
        raise StorageError(
            f"There is not enough space left in {folder} to save {checkpoint.name} ({free / 2**30:.2f} GiB free). Free some "
            f"and go on, from what was saved before, with --c."
        ) from None
    partial.replace(path)
    temporary.replace(checkpoint)
    remove_companions(checkpoint, keep=path)


@contextmanager
def keeping_weight_decay(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """What is loaded inside brings the state of optimisers, but not the weight decay of the training before.

    So a weight decay that was changed since counts, as all other settings do.
    """
    before = [(optimizer, [group.get("weight_decay") for group in optimizer.param_groups]) for optimizer in optimizers]
    try:
        yield
    finally:
        for optimizer, values in before:
            for group, value in zip(optimizer.param_groups, values, strict=True):
                group["weight_decay"] = value


def companion_state(caml: MutualLearning, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]) -> dict:
    """All that a run is made of beside V and nnU-Net's log: A, heads, memory, their optimiser, random numbers, settings."""
    return {
        "auxiliary": unwrap(caml.auxiliary).state_dict(),
        "heads": [head.state_dict() for head in caml.heads()],
        "memory": caml.memory.state_dict(),
        "cases": [str(case) for case in caml.memory.case_index],
        "optimizer": _without_numpy(optimizer.state_dict()),
        "rng": get_rng_state(),
        "settings": dict(settings),
    }


def _without_numpy(state: dict) -> dict:
    """State of an optimiser of which a schedule or a setting may have worked out something with numpy, such as betas."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(plain, value))
        return value.item() if isinstance(value, np.generic) else value

    return {**state, "param_groups": [{k: plain(v) for k, v in group.items()} for group in state["param_groups"]]}


def restore_companion(state: dict, caml: MutualLearning, optimizer: torch.optim.Optimizer) -> bool:
    """Restores what :func:`companion_state` gave, but for the random numbers.

    Returns:
        ``False`` if the memory was left as it is, because it belongs to other labelled cases.

    Raises:
        SettingsError: The networks, the optimiser or the memory were others. Some parts may have been restored by then.
    """
    same_cases = state["cases"] == list(caml.memory.case_index)
    try:
        unwrap(caml.auxiliary).load_state_dict(state["auxiliary"])
        for head, saved in zip(caml.heads(), state["heads"], strict=True):
            head.load_state_dict(saved)
        optimizer.load_state_dict(state["optimizer"])
        if same_cases:
            caml.memory.load_state_dict(state["memory"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"was saved with other settings of the trainer ({shorten(str(error), 160)})") from None
    return same_cases


def load_companion(checkpoint: Path, logger: Any, device: torch.device) -> dict:
    """What was saved beside a checkpoint.

    Args:
        checkpoint: nnU-Net's file.
        logger: nnU-Net's, with the log of that checkpoint loaded.
        device: For the tensors.

    Raises:
        CompanionError: It is missing, of another run, or cannot be read.
    """
    path = companion(checkpoint, len(run_token(logger)))
    if not path.is_file():
        raise CompanionError("is missing")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever a damaged file leads to
        raise CompanionError(f"cannot be read ({type(error).__name__}: {shorten(str(error), 160)})") from None
    if not isinstance(state, dict) or not state.keys() >= PARTS:
        raise CompanionError("is no companion of a checkpoint")
    if state.pop("run") != run_token(logger):
        raise CompanionError("belongs to another run")
    return state


def get_rng_state() -> dict:
    """State of the generators that training draws from, as tensors and numbers.

    With single-process data loading (``nnUNet_n_proc_DA=0``) a continued run so draws the same numbers as an unbroken one.
    """
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
    }


def set_rng_state(state: dict) -> None:
    """Restores what :func:`get_rng_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    if torch.backends.mps.is_available():
        for numbers in state["mps"]:
            torch.mps.set_rng_state(numbers.cpu())
