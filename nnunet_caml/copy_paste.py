"""Bidirectional copy-paste for V: Bai et al., CVPR 2023, arXiv:2305.00673, in the form that mutual learning needs.

A labelled and an unlabelled patch of the batch exchange a box before V sees them, and V's outputs exchange it back. So every
loss, the memory and OCC have V's answers at the voxels where they belong, and need not know. But V gave them in foreign
surroundings, and A, which sees the patches as they are, gives it the labels: V has to tell a structure by itself, and not by
what lies around it in the few labelled cases. An exchange is its own inverse, so both are one function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Box", "exchange", "random_box", "view_of_v"]

#: first and last edge along each axis, as fractions of the patch
Box = Sequence[tuple[float, float]]


def view_of_v(
    shape: Sequence[int], labeled: int, scales: Sequence[Sequence[float]] | None, share: float
) -> Callable[[Any], Any]:
    """What V's view of a batch differs by, drawn for one step, and undone by the same function.

    Args:
        shape: Of the batch, ``(B, C, *patch)``, labelled first.
        labeled: Number of labelled patches.
        scales: Size of each output per axis as a fraction of the patch, coarsest last; ``None`` for a single one.
        share: See :func:`random_box`; 0 for no exchange.

    Returns:
        :func:`exchange` of a :func:`random_box`, or the identity where there is nothing to exchange.
    """
    if shape[0] == labeled or not share:
        return lambda x: x
    patch = shape[2:]
    coarsest = scales[-1] if scales else [1.0] * len(patch)
    return exchange(random_box([max(1, round(n * s)) for n, s in zip(patch, coarsest, strict=True)], share), labeled)


def random_box(coarsest: Sequence[int], share: float) -> Box:
    """A box at a random place, with faces between voxels of the coarsest output, and so of all others.

    Args:
        coarsest: Voxels of the coarsest output along each axis.
        share: Of the patch's length along each axis; the paper has two thirds. Rounded to whole voxels, at least one.
    """
    box = []
    for cells in coarsest:
        side = min(cells, max(1, round(share * cells)))
        start = int(torch.randint(cells - side + 1, ()))
        box.append((start / cells, (start + side) / cells))
    return box


def exchange(box: Box, labeled: int) -> Callable[[Any], Any]:
    """A function that exchanges a box between labelled and unlabelled samples, the first with the first and so on.

    Args:
        box: From :func:`random_box`.
        labeled: Number of labelled samples. Samples without a partner stay as they are.

    Returns:
        Of a tensor ``(B, C, *spatial)`` of any resolution, or of a list of such.
    """

    def swap(x: Any) -> Any:
        if isinstance(x, list | tuple):
            return [swap(item) for item in x]
        inside = tuple(slice(round(a * size), round(b * size)) for (a, b), size in zip(box, x.shape[2:], strict=True))
        pairs = min(labeled, len(x) - labeled)
        ours = (slice(0, pairs), slice(None), *inside)
        theirs = (slice(labeled, labeled + pairs), slice(None), *inside)
        result: Tensor = x.clone()
        result[ours], result[theirs] = x[theirs], x[ours]
        return result

    return swap
