"""One step on a batch of full size before the training begins, on a GPU.

In the first 40 % of a training there are labelled patches only, which need half of the memory that the rest needs. That a GPU
has too little would be found out hours or days later, at a point that continuing does not get past. So the largest step is
tried first: both networks, all losses and their gradients, no update. Weights, statistics, memory bank and random numbers are
afterwards what they were before.
"""

from typing import Any

import torch
from torch import Tensor, autocast

from nnunet_caml.checkpoints import get_rng_state, set_rng_state
from nnunet_caml.footprint import WAYS_OUT
from nnunet_caml.networks import unwrap

__all__ = ["rehearse", "rehearse_on_gpu"]


def rehearse_on_gpu(trainer: Any) -> None:
    """:func:`rehearse` where memory is scarce, unless no unlabelled patch will ever come in."""
    if trainer.device.type == "cuda" and (trainer.lambda_c or trainer.lambda_o):
        rehearse(trainer)


def rehearse(trainer: Any) -> None:
    """Tries the largest step of a training that is about to start.

    Args:
        trainer: A :class:`nnunet_caml.trainer.nnUNetTrainerCAML` with its loaders. A labelled batch of them is used up, and
            stands for the unlabelled one as well.

    Raises:
        RuntimeError: The device has too little memory.
    """
    device = trainer.device
    modules = (unwrap(trainer.network), trainer.caml)
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before, random = [buffer.clone() for buffer in buffers], get_rng_state()
    trainer.network.train()
    trainer.caml.train()
    labeled, unlabeled = trainer.batch_size, trainer.unlabeled_per_labeled * trainer.batch_size
    try:
        batch = next(trainer.dataloader_train.labeled)
        images = torch.cat([batch["data"].to(device)] * (1 + trainer.unlabeled_per_labeled))
        target = batch["target"]
        target = [t.to(device) for t in target] if isinstance(target, list) else target.to(device)
        step(trainer, images, target, list(batch["keys"]))
    except torch.cuda.OutOfMemoryError as problem:
        raise RuntimeError(
            f"{device} has too little memory for a step of both networks on {labeled} labelled and {unlabeled} unlabelled "
            f"patches, which come in later in the training, so it is not begun. {WAYS_OUT} ({problem})"
        ) from None
    finally:
        for optimizer in (trainer.optimizer, trainer.auxiliary_optimizer):
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
        set_rng_state(random)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def step(trainer: Any, images: Tensor, target: Any, cases: list[str]) -> None:
    """All losses and their gradients, in the precision of the training."""
    with autocast(trainer.device.type, enabled=trainer.device.type == "cuda"):
        losses, _ = trainer.losses(images, target, cases)
    # unscaled: what overflows here is thrown away
    sum(loss for loss in losses.values() if loss.requires_grad).backward()
