"""What several processes (``-num_gpus``) have to agree on, beyond what ``DistributedDataParallel`` does for V and A."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn


def on_first_rank(task: Callable[[], object], rank: int, is_ddp: bool) -> None:
    """Runs ``task`` on rank 0 while the others wait, however long it takes.

    Args:
        task: What to do.
        rank: Of this process.
        is_ddp: Whether there are others.

    Raises:
        Exception: On rank 0 what ``task`` raised.
        RuntimeError: On the others, with its message: all ranks have to stop when one does.
    """
    problem = None
    if rank == 0:
        try:
            task()
        except Exception as error:
            problem = error
    if is_ddp:
        # NCCL would give up after minutes
        group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        message = [None if problem is None else f"{type(problem).__name__}: {problem}"]
        dist.broadcast_object_list(message, 0, group=group)
        if problem is None and message[0] is not None:
            raise RuntimeError(f"Rank 0 stopped: {message[0]}")
    if problem is not None:
        raise problem


def broadcast_state(modules: Sequence[nn.Module]) -> None:
    """Gives all ranks the parameters and buffers that rank 0 has."""
    for module in modules:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def average_gradients(modules: Sequence[nn.Module]) -> None:
    """Mean of the ranks' gradients, for modules that run outside of any ``DistributedDataParallel``.

    A parameter without a gradient on one rank counts as zero there.
    """
    for module in modules:
        for p in module.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


def gather_outputs(outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Collated outputs of the training steps of all ranks, one rank after the other."""
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, outputs)
    return {k: np.concatenate([np.asarray(g[k]) for g in gathered]) for k in outputs}
