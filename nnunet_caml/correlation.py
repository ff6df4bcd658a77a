"""Omni-Correlation Consistency (OCC): section 2.3 of Gao et al., MICCAI 2023, arXiv:2307.06312.

Each network describes the unlabelled voxels by their similarity to a memory of labelled embeddings (one *correlation
row* per voxel, a distribution over the memory). The two descriptions have to agree. This module is pure functions on
tensors; it knows neither where the memory comes from (:mod:`nnunet_caml.memory`) nor the heads
(:mod:`nnunet_caml.heads`).

On a GPU all shapes are fixed by the configuration and what is not there is masked out, so that nothing has to be copied
to the host to learn how many voxels or memory entries there are.

What the paper does not speak of, and what is done here:

- *Several classes*: memory and voxel selection work per class. With 12800 voxels and 256 memory entries for each class the
  cost would grow with the square of the classes, so the voxels of all classes together are bounded by what the paper has
  with its two (``max_filtered`` of the trainer) and the cost is linear.
- *Small patches*: the paper's 25600 voxels are 1.3 % of those in its two patches of 112 x 112 x 80, and a seventh of those in
  two of 40 x 56 x 40. :func:`voxels_per_class` keeps the share (``max_filtered_share``), so that OCC sees the equally
  confident part of any patch and costs the same part of a step.
- *Regions*: classes are those of the label map that nnU-Net makes of the regions at inference
  (:class:`nnunet_caml.labels.LabelSpace`), background included.
- *Ignore label*: voxels with it never enter the memory. OCC itself only looks at unlabelled patches.
- *Order of selection and heads*: the voxels are chosen first and only they go through the heads. The reference sends all
  agreeing voxels through the heads and chooses afterwards, so its BatchNorm sees more voxels of the same batch.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_caml.consistency import at_least_float32, full_precision

SIMILARITIES = ("dot", "cosine")


class Correlation(NamedTuple):
    """What :func:`occ_loss` gives.

    Attributes:
        loss: Scalar, float32 or more precise; 0 with zero gradients if no voxel or no memory is valid.
        row_peak: Scalar without gradient in [0, 1]: mean over voxels of the largest entry of V's correlation row. At 1 the rows
            are one-hot, the softmax is saturated and the loss has next to no gradient.
    """

    loss: Tensor
    row_peak: Tensor


class Selection(NamedTuple):
    """Voxels chosen for OCC.

    Attributes:
        positions: ``(K * n,)``, positions in the flattened voxels.
        valid: ``(K * n,)`` bool; entries that are ``False`` are fillers and count for nothing.
    """

    positions: Tensor
    valid: Tensor


#: fewest voxels of all classes together that a share is rounded down to: batch statistics of fewer would be noise
FEWEST_VOXELS = 512


def voxels_per_class(voxels: int, num_classes: int, num_filtered: int, max_filtered: int, max_filtered_share: float) -> int:
    """How many voxels of a class enter OCC at most.

    Args:
        voxels: Of the unlabelled patches of a step, together.
        num_classes: ``K``.
        num_filtered: Bound per class; the paper's 12800.
        max_filtered: Bound on all classes together.
        max_filtered_share: Bound on all classes together as a share of ``voxels``, in (0, 1]; at least :data:`FEWEST_VOXELS`.

    Returns:
        At least 1.
    """
    together = min(max_filtered, max(round(max_filtered_share * voxels), FEWEST_VOXELS))
    return max(1, min(num_filtered, together // num_classes))


def select_voxels(agree: Tensor, predicted: Tensor, confidence: Tensor, num_classes: int, num_filtered: int) -> Selection:
    """Chooses, per predicted class, the most confident voxels on which both networks agree.

    A class with fewer than two such voxels contributes none.

    Args:
        agree: ``(N,)`` bool, both networks predict the same class.
        predicted: ``(N,)`` class indices in ``[0, num_classes)``.
        confidence: ``(N,)`` confidence of the vanilla network, finite, in any scale that does not saturate
            (:meth:`nnunet_caml.labels.LabelSpace.confidence`): of equal ones the first would be taken.
        num_classes: ``K``.
        num_filtered: Most voxels to keep per class; the paper's 12800.

    Returns:
        A :class:`Selection` with ``n = min(num_filtered, N)`` entries per class; on a CPU without fillers.
    """
    n = min(num_filtered, predicted.numel())
    indices, valids = [], []
    for k in range(num_classes):
        candidates = agree & (predicted == k)
        value, index = confidence.masked_fill(~candidates, float("-inf")).topk(n, sorted=False)
        indices.append(index)
        valids.append((value > float("-inf")) & (candidates.sum() >= 2))
    selection = Selection(torch.cat(indices), torch.cat(valids))
    if predicted.device.type == "cpu":
        # Fillers only spare a GPU the wait for a count. Here they would just be work.
        return Selection(selection.positions[selection.valid], selection.valid[selection.valid])
    return selection


def check_similarity(similarity: str) -> None:
    """Raises ``ValueError`` unless ``similarity`` is one of :data:`SIMILARITIES`."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")


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
    check_similarity(similarity)
    if similarity == "cosine":
        features, memory = F.normalize(at_least_float32(features), dim=1), F.normalize(at_least_float32(memory), dim=1)
    return F.linear(at_least_float32(features) / temperature, at_least_float32(memory), missing(memory, memory_valid))


def missing(memory: Tensor, memory_valid: Tensor) -> Tensor:
    """``(M,)`` to add to similarities: 0 where there is a memory, ``-inf`` where there is none."""
    bias = torch.zeros(len(memory), dtype=at_least_float32(memory[:0]).dtype, device=memory.device)
    return bias.masked_fill(~memory_valid, float("-inf"))


def peaked_softmax(x: Tensor) -> Tensor:
    """Softmax of the rows of ``x``, which is overwritten.

    Saturated rows are full of numbers, and of products of them, that are too small for a normal float, with which a CPU
    is eight times as slow. There, probabilities below ``exp(-40)``, 4e-18, of the largest count as that, those of an
    absent memory too.
    """
    if x.device.type == "cpu":
        x = x.sub_(x.amax(1, keepdim=True)).clamp_(min=-40)
    return x.softmax(1)


class _RowCrossEntropy(torch.autograd.Function):
    """Sum over rows of ``-sum_j corr_a[j] log(corr_v[j] + 1e-8)``, with the gradients worked out on the way.

    Similarities of all voxels to the whole memory are by far the largest tensors of OCC (gigabytes with many classes) and
    autograd would keep half a dozen of them. Here only some rows exist at a time, and each is passed over once.
    """

    CHUNK = 1024

    @staticmethod
    def forward(ctx: Any, f_v: Tensor, f_a: Tensor, weight: Tensor, memory: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """``f_v`` and ``f_a`` are ``(N, D)`` over the temperature, ``weight`` is ``(N, 1)``, ``bias`` as of :func:`missing`."""
        grad_v, grad_a = torch.empty_like(f_v), torch.empty_like(f_a)
        total, peak = f_v.new_zeros(()), f_v.new_zeros(())
        # small chunks stay in a CPU's cache; a GPU, with its cost per operation, gets tensors of up to 64 MiB
        chunk = _RowCrossEntropy.CHUNK if f_v.device.type == "cpu" else max(_RowCrossEntropy.CHUNK, 2**24 // len(memory))
        for start in range(0, len(f_v), chunk):
            rows = slice(start, start + chunk)
            w = weight[rows]
            q = peaked_softmax(F.linear(f_v[rows], memory, bias))
            p = peaked_softmax(F.linear(f_a[rows], memory, bias))
            peak += (q.amax(1, keepdim=True) * w).sum()
            safe = q + 1e-8
            # loss = -sum_j p log(safe); its gradients by the similarities behind p and q, each a row times the memory
            qg = (p / safe).mul_(q)
            minus_grad_q = qg.addcmul_(q, -qg.sum(1, keepdim=True))
            pl = safe.log_().mul_(p)
            minus_loss = pl.sum(1, keepdim=True)
            minus_grad_p = pl.addcmul_(p, -minus_loss)
            total -= (minus_loss * w).sum()
            torch.mm(minus_grad_q, memory, out=grad_v[rows]).mul_(-w)
            torch.mm(minus_grad_p, memory, out=grad_a[rows]).mul_(-w)
        ctx.save_for_backward(grad_v, grad_a)
        ctx.mark_non_differentiable(peak)
        return total, peak

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for the embeddings only: the memory is never trained."""
        grad_v, grad_a = ctx.saved_tensors
        return grad_v * grads[0], grad_a * grads[0], None, None, None


def occ_loss(
    features_v: Tensor,
    features_a: Tensor,
    valid: Tensor,
    memory: Tensor,
    memory_valid: Tensor,
    temperature: float = 0.1,
    similarity: str = "dot",
) -> Correlation:
    """Mean over voxels of ``-sum_j corr_a[j] * log(corr_v[j] + 1e-8)``; neither side is detached.

    Args:
        features_v: ``(N, D)`` embeddings of the vanilla network, after its projection and prediction heads.
        features_a: ``(N, D)`` embeddings of the auxiliary network at the same voxels.
        valid: ``(N,)`` bool, which voxels count.
        memory: ``(M, D)`` labelled embeddings of all classes together; no gradient flows to them.
        memory_valid: ``(M,)`` bool, which of them are there.
        temperature: See :func:`correlation_logits`.
        similarity: See :func:`correlation_logits`.

    Returns:
        A :class:`Correlation`.

    Raises:
        ValueError: If ``similarity`` is not one of :data:`SIMILARITIES`.
    """
    check_similarity(similarity)
    with full_precision(features_v.device):
        features_v, features_a, memory = (at_least_float32(x) for x in (features_v, features_a, memory))
        if similarity == "cosine":
            features_v, features_a, memory = (F.normalize(x, dim=1) for x in (features_v, features_a, memory))
        anything = memory_valid.any() & valid.any()
        # With no memory at all every row would be a softmax over nothing: look at everything and weigh it by zero.
        bias = missing(memory, memory_valid | ~anything)
        weight = (valid & anything).to(features_v.dtype) / valid.sum().clamp(min=1)
        loss, peak = _RowCrossEntropy.apply(
            features_v / temperature, features_a / temperature, weight.unsqueeze(1), memory.detach(), bias
        )
        return Correlation(loss, peak)
