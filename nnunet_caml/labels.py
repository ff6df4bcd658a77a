"""What the channels of the network's output mean, for plain labels, regions and the ignore label of nnU-Net.

CMA and the consistency loss work on channels as they are. OCC and the memory need *one* class per voxel. For plain
labels that is the argmax. For regions it is the label map that nnU-Net itself makes of them at inference
(``regions_class_order``: later regions overwrite earlier ones where their probability exceeds one half), with
background where no region is, and classes are positions in that order.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelSpace:
    """Classes of a segmentation task.

    Attributes:
        num_outputs: Channels of the network's output.
        regions: Outputs are sigmoids of overlapping regions.
        ignore_label: Value of ignored voxels in a plain label target; for regions, nnU-Net appends a channel instead.
        has_ignore: Whether there is an ignore label at all.
    """

    num_outputs: int
    regions: bool = False
    ignore_label: int | None = None
    has_ignore: bool = False

    @classmethod
    def from_label_manager(cls, label_manager: Any) -> "LabelSpace":
        """From nnU-Net's own ``LabelManager``."""
        return cls(
            num_outputs=label_manager.num_segmentation_heads,
            regions=label_manager.has_regions,
            ignore_label=label_manager.ignore_label,
            has_ignore=label_manager.has_ignore_label,
        )

    @property
    def num_classes(self) -> int:
        """Classes of the label map, background included."""
        return self.num_outputs + 1 if self.regions else self.num_outputs

    def _from_regions(self, member: Tensor) -> Tensor:
        """``(B, R, ...)`` bool to class indices ``(B, ...)``: the last region that holds wins, none is background."""
        order = torch.arange(1, self.num_outputs + 1, device=member.device).view(1, -1, *[1] * (member.ndim - 2))
        return (member * order).amax(1)

    @torch.no_grad()
    def predicted(self, logits: Tensor) -> Tensor:
        """Predicted classes.

        Args:
            logits: ``(B, num_outputs, *spatial)``.

        Returns:
            Class indices ``(B, *spatial)`` int64.
        """
        if self.regions:
            return self._from_regions(torch.sigmoid(logits.float()) > 0.5)
        return logits.max(1).indices  # argmax over channels takes 20 times as long on a CPU

    @torch.no_grad()
    def confidence(self, logits: Tensor) -> Tensor:
        """How sure a prediction is, as log-odds ``log(p / (1 - p))`` of the largest softmax probability ``p``.

        Voxels have the same order by it as by ``p``, the paper's confidence. But ``p`` is 1 in float32 wherever a class is 17
        ahead of the others, which much of the background is, and then there is no order any more.

        Args:
            logits: ``(B, num_outputs, *spatial)``.

        Returns:
            ``(B, *spatial)``, float32 or more precise; for regions, the smallest over the regions, each of two classes.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.regions:
            return logits.abs().amin(1)
        largest, predicted = logits.max(1, keepdim=True)
        others = logits.scatter(1, predicted, -torch.inf)
        return largest[:, 0] - others.logsumexp(1)  # finite, however far ahead a class is

    @torch.no_grad()
    def target(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """True classes, and which voxels are annotated.

        Args:
            target: As nnU-Net's loader gives it: ``(B, 1, *spatial)`` labels, or ``(B, regions [+ ignore], *spatial)``.

        Returns:
            Class indices ``(B, *spatial)`` int64 and ``(B, *spatial)`` bool, ``False`` where the label is to be ignored.
        """
        if self.regions:
            annotated = ~target[:, -1].bool() if self.has_ignore else torch.ones_like(target[:, 0], dtype=torch.bool)
            return self._from_regions(target[:, : self.num_outputs].bool()), annotated
        labels = target[:, 0].long()
        if self.ignore_label is None:
            return labels, torch.ones_like(labels, dtype=torch.bool)
        annotated = labels != self.ignore_label
        return labels * annotated, annotated

    @torch.no_grad()
    def as_target(self, logits: Tensor) -> Tensor:
        """Predictions in the form in which nnU-Net's loader gives true labels; no voxel is ignored.

        Args:
            logits: ``(B, num_outputs, *spatial)``.

        Returns:
            ``(B, 1, *spatial)`` labels int64, or ``(B, regions [+ ignore], *spatial)`` bool.
        """
        if not self.regions:
            return self.predicted(logits).unsqueeze(1)
        member = logits > 0
        return torch.cat((member, torch.zeros_like(member[:, :1])), 1) if self.has_ignore else member
