"""Pairs of nnU-Net's checkpoint and its companion: what a kill leaves, and what is restored."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from torch import nn

from nnunet_caml.checkpoints import (
    CompanionError,
    companion,
    companion_state,
    get_rng_state,
    go_on_from_best,
    load_companion,
    restore_companion,
    save,
    set_rng_state,
)
from nnunet_caml.labels import LabelSpace
from nnunet_caml.learning import MutualLearning


def learning(*cases: str) -> tuple[MutualLearning, torch.optim.Optimizer]:
    caml = MutualLearning(nn.Linear(2, 2), 3, LabelSpace(2, False, None), list(cases), width=4, per_class=2)
    return caml, torch.optim.SGD(caml.parameters(), 0.1)


def logger_after(folder: Path, epochs: int) -> MetaLogger:
    logger = MetaLogger(str(folder), False)
    for epoch in range(epochs):
        logger.log("epoch_end_timestamps", 100.0 + epoch, epoch)
    return logger


def test_the_memory_of_other_cases_is_not_taken():
    caml, optimizer = learning("a", "b")
    caml.memory.counts += 7
    state = companion_state(caml, optimizer, {})
    same, of_same = learning("a", "b")
    assert restore_companion(state, same, of_same)
    assert (same.memory.counts == 7).all()
    other, of_other = learning("a", "c")
    assert not restore_companion(state, other, of_other)
    assert (other.memory.counts == 0).all()
    assert torch.equal(other.auxiliary.weight, caml.auxiliary.weight)


def test_what_is_of_numpy_can_be_read_again(tmp_path: Path):
    """As a learning rate or weight decay that was worked out with it, and the cases of a split of the user's own."""
    caml, _ = learning(*np.array(["a", "b"]))
    optimizer = torch.optim.SGD(caml.parameters(), np.sqrt(1e-2), weight_decay=np.sqrt(1e-10))
    checkpoint, logger = tmp_path / "checkpoint_latest.pth", logger_after(tmp_path, 1)
    save(checkpoint, lambda name: torch.save({}, name), companion_state(caml, optimizer, {}), logger)
    same, of_same = learning("a", "b")
    assert restore_companion(load_companion(checkpoint, logger, torch.device("cpu")), same, of_same)
    assert of_same.param_groups[0]["lr"] == pytest.approx(0.1)
    assert of_same.param_groups[0]["weight_decay"] == pytest.approx(1e-5)


def test_pairs_of_numpy_can_be_read_again(tmp_path: Path):
    """As the betas of an optimiser of the Adam family."""
    caml, _ = learning("a", "b")
    optimizer = torch.optim.AdamW(caml.parameters(), 0.1, (1 - np.sqrt(1e-2), 0.999))
    checkpoint, logger = tmp_path / "checkpoint_latest.pth", logger_after(tmp_path, 1)
    save(checkpoint, lambda name: torch.save({}, name), companion_state(caml, optimizer, {}), logger)
    state = load_companion(checkpoint, logger, torch.device("cpu"))
    assert state["optimizer"]["param_groups"][0]["betas"] == pytest.approx((0.9, 0.999))


@pytest.mark.parametrize("moment", range(8))
def test_a_kill_at_any_moment_leaves_a_pair_that_fits(tmp_path: Path, monkeypatch, moment: int):
    """Before each thing that happens to the file system, one after the other."""
    checkpoint = tmp_path / "checkpoint_latest.pth"
    caml, optimizer = learning("a")

    def save_epoch(epochs: int) -> None:
        stock = {"epochs": epochs}
        save(
            checkpoint,
            lambda name: torch.save(stock, name),
            {**companion_state(caml, optimizer, {}), "n": epochs},
            logger_after(tmp_path, epochs),
        )

    save_epoch(1)
    left = [moment]

    def dying(function):
        def call(*args, **kwargs):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((torch, "save"), (Path, "replace"), (Path, "unlink")):
            patched.setattr(owner, name, dying(getattr(owner, name)))
        try:
            save_epoch(2)
        except KeyboardInterrupt:
            killed = True
        else:
            killed = False
    assert killed == (moment < 5), "two files written, two moved, one removed"
    epochs = torch.load(checkpoint, weights_only=True)["epochs"]
    state = load_companion(checkpoint, logger_after(tmp_path, epochs), torch.device("cpu"))
    assert state["n"] == epochs


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04K\x01."])
def test_a_companion_that_cannot_be_read(tmp_path: Path, content: bytes):
    checkpoint = tmp_path / "checkpoint_latest.pth"
    companion(checkpoint, 1).write_bytes(content)
    with pytest.raises(CompanionError, match=r"^cannot be read"):
        load_companion(checkpoint, logger_after(tmp_path, 1), torch.device("cpu"))


@pytest.mark.parametrize("change", [{"heads": []}, {"auxiliary": {}}, {"memory": {}}, {"optimizer": {"state": {}}}])
def test_a_companion_of_other_settings(change: dict):
    caml, optimizer = learning("a")
    state = companion_state(caml, optimizer, {}) | change
    with pytest.raises(CompanionError, match="other settings"):
        restore_companion(state, caml, optimizer)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_random_state_is_that_of_the_first_rank_alone(make_trainer, rank: int):
    """With it, the others would go on with the same numbers as the first."""
    trainer = make_trainer()
    trainer.on_train_start()
    trainer.logger.log("epoch_end_timestamps", 1.0, 0)
    trainer.save_checkpoint(file := str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    saved = torch.get_rng_state()
    torch.rand(1)
    again = make_trainer(resume=True)
    again.load_checkpoint(file)
    again.local_rank = rank
    again.on_train_start()
    assert torch.equal(torch.get_rng_state(), saved) == (rank == 0)


@pytest.mark.parametrize("wrong", ["stock", "list", "no rng", "one head", "flipped"])
def test_another_file_under_the_name_of_a_companion(tmp_path: Path, wrong: str):
    """As after copying the wrong one, or from a damaged disk."""
    checkpoint, logger = tmp_path / "checkpoint_latest.pth", logger_after(tmp_path, 1)
    caml, optimizer = learning("a")
    save(checkpoint, lambda name: torch.save({}, name), companion_state(caml, optimizer, {}), logger)
    file = companion(checkpoint, 1)
    state = torch.load(file, weights_only=False)
    content = {
        "stock": {"network_weights": {}, "optimizer_state": {}},
        "list": [1],
        "no rng": {key: value for key, value in state.items() if key != "rng"},
        "one head": {**state, "heads": state["heads"][:1]},
        "flipped": state,
    }
    torch.save(content[wrong], file)
    if wrong == "flipped":  # a letter of a key, which the archive's checksum does not cover for torch
        file.write_bytes(file.read_bytes().replace(b"auxiliary", b"\xffuxiliary"))
    with pytest.raises(CompanionError, match=r"companion|cannot be read|other settings"):
        restore_companion(load_companion(checkpoint, logger, torch.device("cpu")), caml, optimizer)


def test_when_to_go_on_from_the_best(tmp_path: Path):
    best, final = (tmp_path / f"checkpoint_{name}.pth" for name in ("best", "final"))
    best.touch()
    companion(best, 3).with_suffix(".pth.partial").touch()
    assert go_on_from_best(final) == "", "half a companion is none"
    companion(best, 3).touch()
    assert "move checkpoint_final.pth away" in go_on_from_best(final)
    assert go_on_from_best(best) == ""


def test_every_generator_goes_on_where_it_was():
    np.random.normal()  # numpy keeps every other one
    state = get_rng_state()

    def drawn() -> list[float]:
        return [random.random(), np.random.normal(), np.random.normal(), float(torch.rand(1))]

    first = drawn()
    set_rng_state(state)
    assert drawn() == first
