"""The memory bank of OCC: labelled embeddings, on the device, of bounded size (arXiv:2307.06312, section 2.3).

The paper keeps, for each labelled case, the embedding of *every* correctly classified voxel of its most recent patch, and
draws 256 per class from all of them together in each step. Only 256 are ever drawn, so a random subset of
``slots`` voxels per case and class, with the number of voxels it stands for, is enough to draw from the same
distribution:

Give each of the ``n`` voxels of a case an independent uniform key; a sample without replacement is the voxels with the
256 highest keys of all cases. The keys of one case, in descending order, are the order statistics of ``n`` uniforms,
``U_1 = V_1^(1/n)``, ``U_2 = U_1 V_2^(1/(n-1))``, ... with independent uniform ``V``, and whichever voxels they belong to is
a uniformly random order of the voxels. So the first ``slots`` keys and a stored random subset of the same number of voxels
suffice, and the draw is exact whenever no single case would contribute more than ``slots`` voxels: always, as long as
``slots >= per_class``. Everything has a fixed shape and nothing is copied to the host.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_caml.errors import UnsupportedError


class MemorySample(NamedTuple):
    """What one step compares its voxels to.

    Attributes:
        embeddings: ``(K * per_class, D)``.
        valid: ``(K * per_class,)`` bool. None of a class that holds fewer than ``per_class`` voxels; else all, unless cases
            have to share the rows (see :class:`MemoryBank`) and too few have been visited.
    """

    embeddings: Tensor
    valid: Tensor


def uniform_order_statistics(counts: Tensor, length: int) -> Tensor:
    """Logarithms of the ``length`` largest of ``n`` independent uniform numbers, in descending order.

    Args:
        counts: ``n``, any shape ``(...)``.
        length: How many to give.

    Returns:
        ``(..., length)`` float32; ``-inf`` beyond the ``n``-th.
    """
    rank = torch.arange(length, device=counts.device)
    left = counts.unsqueeze(-1) - rank
    # 1 - rand lies in (0, 1]: its logarithm is finite
    steps = torch.log1p(-torch.rand(left.shape, device=counts.device)) / left.clamp(min=1)
    return steps.cumsum(-1).masked_fill(left <= 0, float("-inf"))


class MemoryBank(nn.Module):
    """Embeddings of correctly classified labelled voxels, by case and class.

    Everything is a buffer, so it is saved and restored with ``state_dict`` and moves with ``.to(device)``.

    Attributes:
        embeddings: ``(cases, K, slots, D)`` float32.
        counts: ``(cases, K)`` int64, correct voxels that the stored ones are a random subset of.

    Args:
        cases: Identifiers of the labelled training cases.
        num_classes: ``K``.
        width: ``D``.
        per_class: Embeddings drawn per class and step; the paper's 256.
        max_rows_per_class: Bound on what is stored per class over all cases. Up to ``max_rows_per_class / per_class``
            cases (256 with the defaults) each has ``per_class`` slots; beyond, they share what there is, but never have
            fewer than ``per_class`` together.
    """

    embeddings: Tensor
    counts: Tensor

    def __init__(
        self,
        cases: list[str],
        num_classes: int,
        width: int = 64,
        per_class: int = 256,
        max_rows_per_class: int = 65536,
    ) -> None:
        super().__init__()
        self.case_index = {case: i for i, case in enumerate(sorted(cases))}
        self.num_classes = num_classes
        self.per_class = per_class
        number = max(1, len(cases))
        self.slots = min(per_class, max(max_rows_per_class // number, -(-per_class // number)))
        self.register_buffer("embeddings", torch.zeros(len(cases), num_classes, self.slots, width))
        self.register_buffer("counts", torch.zeros(len(cases), num_classes, dtype=torch.int64))

    @torch.no_grad()
    def write(self, case: str, embeddings: Tensor, counts: Tensor) -> None:
        """Replaces what is known of one case.

        Args:
            case: Its identifier; must be among those given at construction.
            embeddings: ``(K, m, D)`` with ``m <= slots``, for each class a uniformly random subset of its voxels in
                random order; rows from ``counts[k]`` on are ignored. A class with numbers that are not finite is left empty.
            counts: ``(K,)``, correct voxels of each class.

        Raises:
            UnsupportedError: The case is none of these.
        """
        if (index := self.case_index.get(case)) is None:
            raise UnsupportedError(
                f"The labelled case {case} is trained with, but do_split does not name it among the training cases, by which "
                f"the memory is made. A trainer that changes them has to override do_split, not get_tr_and_val_datasets."
            )
        # A gradient scaler skips a step that overflowed; what it left here would be drawn in later ones.
        finite = embeddings.isfinite().flatten(1).all(1)
        self.embeddings[index, :, : embeddings.shape[1]] = embeddings.nan_to_num(0.0, 0.0, 0.0).to(self.embeddings.dtype)
        self.counts[index] = (counts * finite).to(self.counts.dtype)

    @torch.no_grad()
    def sample(self) -> MemorySample:
        """Draws ``per_class`` embeddings per class without replacement; a class that holds fewer gives none."""
        keys = uniform_order_statistics(self.counts.T, self.slots)  # (K, cases, slots), by rank
        value, flat = keys.flatten(1).topk(self.per_class, sorted=False)  # (K, per_class)
        case, rank = flat // self.slots, flat % self.slots
        # Any fixed assignment of ranks to stored voxels gives the right distribution in one step. A random rotation
        # makes the draws of different steps differ also while a case is not visited.
        filled = self.counts.T.clamp(min=1, max=self.slots)  # (K, cases)
        rotation = (torch.rand(filled.shape, device=filled.device) * filled).long()
        slot = (rank + rotation.gather(1, case)) % filled.gather(1, case)
        of_class = torch.arange(self.num_classes, device=flat.device).unsqueeze(1)
        embeddings = self.embeddings[case, of_class, slot]
        # With more cases than max_rows_per_class / per_class a class can hold enough voxels but too few stored ones.
        enough = (self.counts.sum(0) >= self.per_class).unsqueeze(1) & (value > float("-inf"))
        return MemorySample(embeddings.flatten(0, 1), enough.flatten())

    def fill(self) -> Tensor:
        """Share of classes that hold at least ``per_class`` voxels, a scalar on the device in ``[0, 1]``."""
        return (self.counts.sum(0) >= self.per_class).float().mean()


def random_correct_voxels(correct: Tensor, target: Tensor, num_classes: int, slots: int) -> tuple[Tensor, Tensor]:
    """A uniformly random subset, in random order, of the correctly classified voxels of each class of one sample.

    Args:
        correct: ``(N,)`` bool, labelled and classified correctly by both networks.
        target: ``(N,)`` class indices.
        num_classes: ``K``.
        slots: Most voxels to choose per class.

    Returns:
        Positions ``(K, min(slots, N))`` and counts ``(K,)``; positions from the count on are fillers.
    """
    key = torch.rand(target.shape, device=target.device)
    chosen, counts = [], []
    for k in range(num_classes):
        candidates = correct & (target == k)
        chosen.append(key.masked_fill(~candidates, -1.0).topk(min(slots, target.numel())).indices)
        counts.append(candidates.sum())
    return torch.stack(chosen), torch.stack(counts)
