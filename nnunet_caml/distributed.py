"""What several processes (``-num_gpus``) have to agree on, beyond what ``DistributedDataParallel`` does for V and A."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def on_first_rank(task: Callable[[], T], rank: int, is_ddp: bool) -> T:
    """Runs ``task`` on rank 0 while the others wait, however long it takes.

    Args:
        task: What to do.
        rank: Of this process.
        is_ddp: Whether there are others.

    Returns:
        On every rank what ``task`` gave on the first.

    Raises:
        Exception: On rank 0 what ``task`` raised.
        RuntimeError: On the others, with its message: all ranks have to stop when one does.
    """
    problem = None
    result: Any = None
    if rank == 0:
        try:
            result = task()
        except Exception as error:
            problem = error
    if is_ddp:
        # NCCL would give up after minutes
        group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        message = [None if problem is None else f"{type(problem).__name__}: {problem}", result]
        dist.broadcast_object_list(message, 0, group=group)
        said, result = message
        if problem is None and said is not None:
            raise RuntimeError(f"Rank 0 stopped: {said}")
    if problem is not None:
        raise problem
    return result


def broadcast_state(modules: Sequence[nn.Module]) -> None:
    """Gives all ranks the parameters and buffers that rank 0 has."""
    for module in modules:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def average_gradients(modules: Sequence[nn.Module]) -> None:
    """Mean of the ranks' gradients, for modules that run outside of any ``DistributedDataParallel``.

    A parameter without a gradient on one rank counts as zero there. One that has none on any rank stays without, so that
    optimisers leave it alone, weight decay included, as they do in a single process.
    """
    parameters = [p for module in modules for p in module.parameters()]
    anywhere = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(anywhere, dist.ReduceOp.MAX)
    for p in (p for p, has in zip(parameters, anywhere.tolist(), strict=True) if has):
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


def gather_outputs(outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Collated outputs of the training steps of all ranks, one rank after the other."""
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, outputs)
    return {k: np.concatenate([np.asarray(g[k]) for g in gathered]) for k in outputs}
