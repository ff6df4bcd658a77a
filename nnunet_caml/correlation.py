"""Omni-Correlation Consistency (OCC): section 2.3 of Gao et al., MICCAI 2023, arXiv:2307.06312.

Each network describes the unlabelled voxels by their similarity to a memory of labelled embeddings (one *correlation
row* per voxel, a distribution over the memory). The two descriptions have to agree. This module is pure functions on
tensors; it knows neither where the memory comes from (:mod:`nnunet_caml.memory`) nor the heads
(:mod:`nnunet_caml.heads`).

All shapes are fixed by the configuration and what is not there is masked out, so that nothing has to be copied to the
host to learn how many voxels or memory entries there are.

What the paper does not speak of, and what is done here:

- *Several classes*: memory and voxel selection work per class; cost is linear in the classes.
- *Regions*: classes are those of the label map that nnU-Net makes of the regions at inference
  (:class:`nnunet_caml.labels.LabelSpace`), background included.
- *Ignore label*: voxels with it never enter the memory. OCC itself only looks at unlabelled patches.
- *Order of selection and heads*: the voxels are chosen first and only they go through the heads. The reference sends all
  agreeing voxels through the heads and chooses afterwards, so its BatchNorm sees more voxels of the same batch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_caml.consistency import at_least_float32

SIMILARITIES = ("dot", "cosine")


class Selection(NamedTuple):
    """Voxels chosen for OCC.

    Attributes:
        index: ``(K * n,)``, positions in the flattened voxels.
        valid: ``(K * n,)`` bool; entries that are ``False`` are fillers and count for nothing.
    """

    index: Tensor
    valid: Tensor


def select_voxels(agree: Tensor, predicted: Tensor, confidence: Tensor, num_classes: int, num_filtered: int) -> Selection:
    """Chooses, per predicted class, the most confident voxels on which both networks agree.

    A class with fewer than two such voxels contributes none.

    Args:
        agree: ``(N,)`` bool, both networks predict the same class.
        predicted: ``(N,)`` class indices in ``[0, num_classes)``.
        confidence: ``(N,)`` confidence of the vanilla network.
        num_classes: ``K``.
        num_filtered: Most voxels to keep per class; the paper's 12800.

    Returns:
        A :class:`Selection` with ``n = min(num_filtered, N)`` entries per class.
    """
    n = min(num_filtered, predicted.numel())
    indices, valids = [], []
    for k in range(num_classes):
        candidates = agree & (predicted == k)
        value, index = confidence.masked_fill(~candidates, -1.0).topk(n, sorted=False)
        indices.append(index)
        valids.append((value >= 0) & (candidates.sum() >= 2))
    return Selection(torch.cat(indices), torch.cat(valids))


def correlation_logits(
    features: Tensor, memory: Tensor, memory_valid: Tensor, temperature: float = 0.1, similarity: str = "dot"
) -> Tensor:
    """Similarities of embeddings to the memory, over the temperature; ``-inf`` where there is no memory.

    Args:
        features: ``(N, D)`` embeddings.
        memory: ``(M, D)`` embeddings.
        memory_valid: ``(M,)`` bool.
        temperature: The paper's 0.1.
        similarity: ``"dot"``, the paper's plain dot product, or ``"cosine"``.

    Returns:
        ``(N, M)``, float32 or more precise.

    Raises:
        ValueError: If ``similarity`` is not one of :data:`SIMILARITIES`.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
    features, memory = at_least_float32(features), at_least_float32(memory)
    if similarity == "cosine":
        features, memory = F.normalize(features, dim=1), F.normalize(memory, dim=1)
    return (features @ memory.T / temperature).masked_fill(~memory_valid, float("-inf"))


def occ_loss(
    features_v: Tensor,
    features_a: Tensor,
    valid: Tensor,
    memory: Tensor,
    memory_valid: Tensor,
    temperature: float = 0.1,
    similarity: str = "dot",
) -> Tensor:
    """Mean over voxels of ``-sum_j corr_a[j] * log(corr_v[j] + 1e-8)``; neither side is detached.

    Args:
        features_v: ``(N, D)`` embeddings of the vanilla network, after its projection and prediction heads.
        features_a: ``(N, D)`` embeddings of the auxiliary network at the same voxels.
        valid: ``(N,)`` bool, which voxels count.
        memory: ``(M, D)`` labelled embeddings of all classes together.
        memory_valid: ``(M,)`` bool, which of them are there.
        temperature: See :func:`correlation_logits`.
        similarity: See :func:`correlation_logits`.

    Returns:
        A scalar, float32 or more precise; 0 with zero gradients if no voxel or no memory is valid.
    """
    with torch.autocast(features_v.device.type, enabled=False):
        anything = memory_valid.any() & valid.any()
        # With no memory at all every row would be a softmax over nothing: look at everything and multiply by zero.
        memory_valid = memory_valid | ~anything
        memory = torch.where(anything, memory, torch.zeros_like(memory))
        corr_v = correlation_logits(features_v, memory, memory_valid, temperature, similarity).softmax(dim=1)
        corr_a = correlation_logits(features_a, memory, memory_valid, temperature, similarity).softmax(dim=1)
        per_voxel = -(corr_a * torch.log(corr_v + 1e-8)).sum(dim=1)
        # Fillers are masked by `where`, not by a product, so that nothing non-finite in them can leak in.
        per_voxel = torch.where(valid & anything, per_voxel, torch.zeros_like(per_voxel))
        return per_voxel.sum() / valid.sum().clamp(min=1)
