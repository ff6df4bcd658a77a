"""One step on a batch of full size before the training begins, on a GPU.

In the first tenth of a training there are labelled patches only, which need half of the memory that the rest needs. That a GPU
has too little would be found out hours later, at a point that continuing does not get past. So the largest step is
tried first: both networks, all losses and their gradients, and room for what the optimisers will keep; without an update.
Weights, statistics, memory bank and random numbers are afterwards what they were before.
"""

from typing import Any

import torch
from torch import Tensor, autocast
from torch.optim import Optimizer

from nnunet_caml.checkpoints import get_rng_state, set_rng_state
from nnunet_caml.errors import UserError
from nnunet_caml.footprint import ways_out
from nnunet_caml.loading import on_device
from nnunet_caml.networks import is_compiled, unwrap

__all__ = ["future_state", "rehearse", "rehearse_on_gpu"]

#: what torch's own error says, and CUDA's, which compilers wrap in errors of theirs
FULL = "out of memory"
#: what cuDNN and cuBLAS say where memory is nearly full
OTHER_WORDS = ("unable to find an engine", "ALLOC_FAILED")


class DeviceMemoryError(UserError, RuntimeError):
    """A step needs more memory than the device has."""


def rehearse_on_gpu(trainer: Any) -> None:
    """:func:`rehearse` where memory is scarce, unless neither loss of unlabelled patches will ever have weight."""
    if trainer.device.type == "cuda" and (trainer.lambda_c or trainer.lambda_o):
        rehearse(trainer)


def rehearse(trainer: Any) -> None:
    """Tries the largest step of a training that is about to start.

    Args:
        trainer: A :class:`nnunet_caml.trainer.nnUNetTrainerCAML` with its loaders. A labelled batch of them is used up, and
            stands for the unlabelled one as well.

    Raises:
        DeviceMemoryError: The device has too little memory.
    """
    device, optimizers = trainer.device, (trainer.optimizer, trainer.auxiliary_optimizer)
    modules = (unwrap(trainer.network), trainer.caml)
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before, random = [buffer.to("cpu", copy=True) for buffer in buffers], get_rng_state()  # no second memory on the device
    trainer.network.train()
    trainer.caml.train()
    labeled, unlabeled = trainer.batch_size, trainer.unlabeled_per_batch(trainer.batch_size)
    waiting = ", and networks are compiled for it, which can take minutes" * is_compiled(trainer.network)
    trainer.print_to_log_file(f"The largest step of this training is tried first{waiting}.")
    try:
        batch = next(trainer.dataloader_train.labeled)
        data = batch["data"]
        views = torch.cat([data] * (1 + trainer.clean_view), 1)
        images, target = on_device({**batch, "unlabeled": views[torch.arange(unlabeled) % labeled]}, device)
        kept = [future_state(optimizer) for optimizer in optimizers]
        step(trainer, images, target, list(batch["keys"]))
        del kept
    except RuntimeError as problem:
        sure = FULL in str(problem)
        if not sure and not any(words in str(problem) for words in OTHER_WORDS):
            raise
        raise DeviceMemoryError(
            f"{device} {'has' if sure else 'most likely has'} too little memory for a step of both networks on {labeled} "
            f"labelled and {unlabeled} unlabelled patches, which come in later in the training, so it is not begun. "
            f"{ways_out(trainer)} ({problem})"
        ) from None
    finally:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
        set_rng_state(random)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def future_state(optimizer: Optimizer) -> list[Tensor]:
    """As much memory as the momentum that an optimiser keeps from its first update on; none where it keeps it already."""
    if optimizer.state:
        return []
    return [torch.empty_like(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def step(trainer: Any, images: Tensor, target: Any, cases: list[str]) -> None:
    """All losses and their gradients, in the precision of the training."""
    with autocast(trainer.device.type, enabled=trainer.device.type == "cuda"):
        losses, _ = trainer.losses(images, target, cases)
    # unscaled: what overflows here is thrown away
    sum(loss for loss in losses.values() if loss.requires_grad).backward()
