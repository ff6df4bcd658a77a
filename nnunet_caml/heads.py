"""Projection and prediction heads of OCC: arXiv:2307.06312, section 2.3.

Linear, BatchNorm, ReLU, Linear, with an embedding width of 64 throughout. The batch statistics of BatchNorm are taken over
the voxels that were chosen for OCC, and only over the valid ones (:class:`MaskedBatchNorm`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_caml.consistency import at_least_float32


class MaskedBatchNorm(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` over those rows of a fixed-size batch that are valid.

    With all rows valid it equals its parent. With fewer than two, or with infinite ones, the running mean and variance
    stay as they are.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalises ``(N, C)``; ``valid`` is ``(N,)`` bool, all rows if ``None``. Invalid rows come out finite."""
        if not self.training or valid is None:
            return super().forward(x)
        x = at_least_float32(x)
        weight = valid.to(x.dtype).unsqueeze(1)
        count = weight.sum()
        mean = (x * weight).sum(0) / count.clamp(min=1)
        variance = ((x - mean).square() * weight).sum(0) / count.clamp(min=1)
        with torch.no_grad():
            # nn.BatchNorm1d keeps the unbiased variance
            unbiased = variance * count / (count - 1).clamp(min=1)
            # A gradient scaler skips a step that overflowed; what it left here would stay and spoil all later ones.
            usable = (count > 1) & mean.isfinite().all() & unbiased.isfinite().all()
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.copy_(torch.where(usable, running.lerp(value, self.momentum or 0.0), running))
            self.num_batches_tracked += 1
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class Head(nn.Module):
    """Linear, BatchNorm, ReLU, Linear.

    Args:
        channels: Of the input.
        width: Of hidden layer and output; the paper's 64.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, width)
        self.norm = MaskedBatchNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Maps ``(N, channels)`` to ``(N, width)``; for ``valid`` see :class:`MaskedBatchNorm`."""
        return self.out(F.relu(self.norm(self.hidden(x), valid)))


class NetworkHeads(nn.Module):
    """The projection head and the prediction head of one network.

    Args:
        channels: Channels of the network's last decoder features.
        width: Embedding width.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.projection = Head(channels, width)
        self.prediction = Head(width, width)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """The embedding that OCC compares to the memory: projection, then prediction; ``(N, C)`` to ``(N, width)``."""
        return self.prediction(self.projection(x, valid), valid)
