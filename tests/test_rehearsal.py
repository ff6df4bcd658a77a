"""The largest step, tried before the training; a GPU's business, here on a CPU."""

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_caml import rehearsal
from nnunet_caml.rehearsal import future_state, rehearse, rehearse_on_gpu


def started(make_trainer, monkeypatch, name: str = "nnUNetTrainerCAMLShort"):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = make_trainer(name)
    trainer.initialize()
    trainer.on_train_start()
    return trainer


def everything(trainer) -> dict[str, torch.Tensor]:
    return {**copy.deepcopy(trainer.network.state_dict()), **copy.deepcopy(trainer.caml.state_dict())}


@pytest.mark.parametrize("name", ["nnUNetTrainerCAMLShort", "nnUNetTrainerCAMLShort_sharedEncoder"])
def test_the_largest_step_leaves_nothing_behind(make_trainer, monkeypatch, name):
    trainer = started(make_trainer, monkeypatch, name)
    trainer.on_train_epoch_start()
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))  # so that there is something in statistics and memory
    before, numbers = everything(trainer), (torch.get_rng_state(), random.getstate(), np.random.get_state()[2])
    sizes, gradients = [], []
    trainer.network.register_forward_hook(lambda _m, args, _o: sizes.append(len(args[0])))
    handle = next(trainer.network.parameters()).register_hook(gradients.append)
    rehearse(trainer)
    handle.remove()
    assert sizes == [2 * trainer.batch_size]
    assert len(gradients) == 1
    after = everything(trainer)
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    assert torch.equal(numbers[0], torch.get_rng_state())
    assert numbers[1:] == (random.getstate(), np.random.get_state()[2])
    assert all(p.grad is None for p in (*trainer.network.parameters(), *trainer.caml.parameters()))
    assert torch.isfinite(torch.tensor(float(trainer.train_step(next(trainer.dataloader_train))["loss"])))


@pytest.mark.parametrize(("per_labeled", "patches"), [(2, 6), (0.5, 3)])
def test_it_is_as_large_as_a_step_of_the_training(make_trainer, monkeypatch, per_labeled, patches):
    """Two views of an unlabelled patch, more or fewer unlabelled than labelled patches, the optimisers' momentum."""
    trainer = started(make_trainer, monkeypatch)
    trainer.clean_view, trainer.unlabeled_per_labeled = True, per_labeled
    sizes, losses = [], trainer.losses
    monkeypatch.setattr(trainer, "losses", lambda images, *rest: sizes.append(images.shape) or losses(images, *rest))
    expected = [sum(x.numel() for x in future_state(o)) for o in (trainer.optimizer, trainer.auxiliary_optimizer)]
    rehearse(trainer)
    assert sizes == [(patches, 2, *trainer.configuration_manager.patch_size)]
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    trainer.iteration = 10**9  # after the ramp-up
    trainer.train_step({**batch, "unlabeled": torch.cat([batch["data"]] * 2, 1)})
    for optimizer, size in zip((trainer.optimizer, trainer.auxiliary_optimizer), expected, strict=True):
        momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
        # the segmentation layer of the lowest resolution has no gradient and so no momentum
        assert 0.99 * size < sum(x.numel() for x in momenta) <= size
        assert future_state(optimizer) == []


@pytest.mark.parametrize("compiled", [False, True])
def test_it_says_what_takes_so_long(make_trainer, monkeypatch, compiled):
    trainer, said = started(make_trainer, monkeypatch), []
    if compiled:
        trainer.network = torch.compile(trainer.network, backend="eager")
    monkeypatch.setattr(trainer, "print_to_log_file", said.append)
    rehearse(trainer)
    waiting = ", and networks are compiled for it, which can take minutes"
    assert said == [f"The largest step of this training is tried first{waiting if compiled else ''}."]


def test_when_it_is_tried(make_trainer, monkeypatch):
    tried: list = []
    monkeypatch.setattr("nnunet_caml.trainer.rehearse_on_gpu", lambda trainer: tried.append(trainer.dataloader_train))
    trainer = started(make_trainer, monkeypatch)
    assert tried == [trainer.dataloader_train]  # once, when there are loaders
    monkeypatch.setattr("nnunet_caml.rehearsal.rehearse", tried.append)
    tried.clear()
    for device, *weights in (("cpu", 1.0, 1.0), ("cuda", 0.0, 0.0), ("cuda", 1.0, 0.0), ("cuda", 0.0, 1.0)):
        rehearse_on_gpu(SimpleNamespace(device=torch.device(device), lambda_c=weights[0], lambda_o=weights[1]))
    assert [(other.lambda_c, other.lambda_o) for other in tried] == [(1.0, 0.0), (0.0, 1.0)]


def test_too_little_memory_is_said_before_the_training(make_trainer, monkeypatch):
    trainer = started(make_trainer, monkeypatch)

    class Full(nn.Module):
        def __init__(self, problem: Exception) -> None:
            super().__init__()
            self.problem = problem

        def forward(self, _images):
            raise self.problem

    trainer.caml.auxiliary = Full(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    said = r" has too little memory .*2 labelled and 2 unlabelled patches.*activation_checkpointing.*"
    with pytest.raises(RuntimeError, match=f"^cpu{said}Tried to allocate"):
        rehearse(trainer)
    for wrapped in ("backend='inductor' raised: OutOfMemoryError: CUDA out of memory", "CUDA error: out of memory"):
        trainer.caml.auxiliary = Full(RuntimeError(wrapped))
        with pytest.raises(RuntimeError, match=rf"^cpu has too little memory .*{wrapped}"):
            rehearse(trainer)
    for words in ("FIND was unable to find an engine to execute this computation", "CUBLAS_STATUS_ALLOC_FAILED"):
        trainer.caml.auxiliary = Full(RuntimeError(words))
        with pytest.raises(RuntimeError, match=f"^cpu most likely{said}{words}"):
            rehearse(trainer)
    trainer.caml.auxiliary = Full(RuntimeError("another fault"))
    with pytest.raises(RuntimeError, match=r"^another fault"):
        rehearse(trainer)


def test_room_for_momentum_is_taken_while_the_step_is_tried(make_trainer, monkeypatch):
    from test_rehearsal import started

    trainer, taken = started(make_trainer, monkeypatch), []
    monkeypatch.setattr(rehearsal, "future_state", lambda optimizer: taken.append(optimizer) or [])
    real = rehearsal.step
    monkeypatch.setattr(rehearsal, "step", lambda *args: taken.append("step") or real(*args))
    rehearsal.rehearse(trainer)
    assert taken == [trainer.optimizer, trainer.auxiliary_optimizer, "step"]
