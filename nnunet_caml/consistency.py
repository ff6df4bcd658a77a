"""Mutual consistency between the two networks, and how its weight grows: arXiv:2307.06312, section 2.1.

What the paper does not speak of, and what is done here:

- *Several classes*: ``sharpen`` normalises over all classes; for two classes that is the paper's formula.
- *Regions* (nnU-Net's overlapping sigmoid outputs): every region is its own two-class problem, so the paper's two-class
  formula is applied to each channel.
- *Ignore label*: the consistency is a loss on predictions, not on labels. It sees ignored voxels like all others.
- *Deep supervision*: only the outputs at full resolution are compared. The lower ones would compare the same
  predictions again, coarser.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from nnunet_caml.labels import LabelSpace

#: mean squared distance to the other's sharpened probabilities (the paper's), or nnU-Net's loss under the other's labels
CONSISTENCIES = ("sharpened", "labels")


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is if it is more precise: losses are computed like this under mixed precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(device: torch.device) -> AbstractContextManager:
    """No mixed precision inside. nnU-Net uses none on ``mps``, where torch 2.3 and 2.4 even refuse to be asked for none."""
    return nullcontext() if device.type == "mps" else torch.autocast(device.type, enabled=False)


def sharpen(logits: Tensor, temperature: float = 0.1, regions: bool = False) -> Tensor:
    """Sharpened probabilities, ``p_k^(1/T) / sum_j p_j^(1/T)``, straight from the logits.

    Because ``p^(1/T)`` of a softmax is, up to normalisation, the softmax of ``logits / T``, no power is ever taken and
    the result and its gradient are finite where probabilities are 0 or 1.

    Args:
        logits: ``(B, K, *spatial)``.
        temperature: ``T`` > 0; the paper's 0.1. ``T = 1`` gives the probabilities themselves.
        regions: Channels are sigmoid outputs of overlapping regions instead of classes of one softmax.

    Returns:
        ``(B, K, *spatial)``, in ``[0, 1]``, float32 or more precise; sums to 1 over ``K`` unless ``regions``.
    """
    scaled = at_least_float32(logits) / temperature
    return torch.sigmoid(scaled) if regions else torch.softmax(scaled, dim=1)


def consistency_loss(
    logits_v: Tensor,
    logits_a: Tensor,
    temperature: float = 0.1,
    regions: bool = False,
    detach_target: bool = False,
) -> Tensor:
    """``MSE(p_v, sharpen(p_a)) + MSE(p_a, sharpen(p_v))``, mean over all elements of the whole batch.

    Args:
        logits_v: Outputs of the vanilla network, ``(B, K, *spatial)``.
        logits_a: Outputs of the auxiliary network, same shape.
        temperature: Of the sharpening.
        regions: See :func:`sharpen`.
        detach_target: Stop the gradient through the sharpened side. In the reference it flows through both sides.

    Returns:
        A scalar, float32 or more precise.
    """
    target_v = sharpen(logits_v.detach() if detach_target else logits_v, temperature, regions)
    target_a = sharpen(logits_a.detach() if detach_target else logits_a, temperature, regions)
    p_v, p_a = sharpen(logits_v, 1.0, regions), sharpen(logits_a, 1.0, regions)
    return (p_v - target_a).square().mean() + (p_a - target_v).square().mean()


def cross_pseudo_loss(
    logits_v: Tensor, logits_a: Tensor, loss: Callable[[Tensor, Tensor], Tensor], labels: LabelSpace
) -> Tensor:
    """Mean of both networks' supervised losses, each with the other's predictions for labels.

    Cross pseudo supervision (Chen et al., CVPR 2021, arXiv:2106.01226), with nnU-Net's loss in place of its cross-entropy.
    No gradient flows into predictions that serve as labels.

    Args:
        logits_v: Outputs of the vanilla network on unlabelled patches, ``(B, K, *spatial)``.
        logits_a: Outputs of the auxiliary network, same shape.
        loss: Of logits and a target, at full resolution.
        labels: Meaning of the outputs.

    Returns:
        A scalar. With nnU-Net's loss it is negative where the networks agree.
    """
    return (loss(logits_v, labels.as_target(logits_a)) + loss(logits_a, labels.as_target(logits_v))) / 2


def rampup(current: float, length: float) -> float:
    """``exp(-5 (1 - current / length)^2)`` while ``current < length``, then 1 (Laine and Aila, arXiv:1610.02242).

    Args:
        current: Steps so far, at least 0.
        length: Steps until the full weight; 0 or less means the full weight from the start.
    """
    if current >= length:
        return 1.0
    return math.exp(-5.0 * (1.0 - max(current, 0.0) / length) ** 2)
