"""Cross-sample Mutual Attention (CMA): section 2.2 of Gao et al., MICCAI 2023, arXiv:2307.06312.

Two post-norm transformer encoder layers, one after the other, on a feature map of shape ``(B, C, *spatial)``. For the
first, *intra-sample*, the tokens are the positions of one sample; for the second, *inter-sample*, the tokens at each
position are the ``B`` samples of the mini-batch, labelled and unlabelled. So every sample sees every other one, and
gradients flow from unlabelled outputs to labelled inputs. CMA only exists while training: it is the identity in
evaluation mode.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: sequences times heads that go into one call: CUDA's kernels fail beyond (pytorch issues 142228, 146704), which the
#: positions of large 2-D patches reach
MOST_SEQUENCES = 65535


def dropout_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Scaled dot-product attention with dropout on the attention weights.

    On a CPU, PyTorch draws one floating point number per weight for the dropout, which takes several times longer than
    the attention itself. A byte per weight is enough there: weights are kept when their byte is below
    ``round(256 * (1 - dropout))``, independently of each other. For the paper's 0.5 that is exactly the same
    distribution, for other rates the rate is rounded to 1/256.

    Args:
        query: ``(N, ..., T, D)``; ``key`` and ``value`` alike.
        dropout: Share of the attention weights set to zero, in ``[0, 1)``.

    Returns:
        ``(N, ..., T, D)``.
    """
    kept = round(256 * (1 - dropout))
    if query.device.type != "cpu" or not 0 < kept < 256:
        most = max(1, MOST_SEQUENCES // math.prod(query.shape[1:-2]))
        if len(query) <= most:
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        parts = zip(*(x.split(most) for x in (query, key, value)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(q, k, v, dropout_p=dropout) for q, k, v in parts])
    weights = torch.softmax(query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]), dim=-1)
    words = torch.randint(-(2**63), 2**63 - 1, (math.ceil(weights.numel() / 8),), device=weights.device)
    mask = words.view(torch.uint8)[: weights.numel()].view_as(weights) < kept
    return (weights * mask) @ value * (256 / kept)


class AttentionLayer(nn.TransformerEncoderLayer):
    """A post-norm transformer encoder layer (ReLU) whose attention goes through :func:`dropout_attention`.

    Parameters and their names are those of :class:`torch.nn.TransformerEncoderLayer`.

    Args:
        channels: ``C``, divisible by ``heads``.
        heads: Number of attention heads.
        width: Width of the feed-forward part; ``4 * C`` in the paper.
        dropout: Of the attention weights, of both residual branches and of the hidden layer.
    """

    def __init__(self, channels: int, heads: int, width: int, dropout: float) -> None:
        super().__init__(channels, heads, width, dropout, batch_first=True)
        self.heads = heads
        self.attention_dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """Maps ``(N, T, C)`` to ``(N, T, C)``; each of the ``N`` sequences attends within itself."""
        n, t, c = tokens.shape
        attention = self.self_attn
        projected = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
        # (N, T, 3C) -> three times (N, heads, T, C / heads)
        query, key, value = projected.view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = dropout_attention(query, key, value, self.attention_dropout if self.training else 0.0)
        attended = attention.out_proj(attended.transpose(1, 2).reshape(n, t, c))
        tokens = self.norm1(tokens + self.dropout1(attended))
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout2(self.linear2(hidden)))


class CrossSampleMutualAttention(nn.Module):
    """CMA: intra-sample, then inter-sample attention; the identity in evaluation mode.

    Args:
        channels: ``C`` of the feature map.
        heads: The paper's 4; the largest divisor of ``channels`` up to this number is used.
        dropout: The paper's 0.5.
        width_factor: Width of the feed-forward part in units of ``channels``; the paper's 4.
    """

    def __init__(self, channels: int, heads: int = 4, dropout: float = 0.5, width_factor: int = 4) -> None:
        super().__init__()
        heads = max(h for h in range(1, heads + 1) if channels % h == 0)
        self.intra = AttentionLayer(channels, heads, width_factor * channels, dropout)
        self.inter = AttentionLayer(channels, heads, width_factor * channels, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(B, C, *spatial)`` to the same shape."""
        if not self.training:
            return features
        tokens = self.intra(features.flatten(2).transpose(1, 2))  # (B, positions, C)
        tokens = self.inter(tokens.transpose(0, 1))  # (positions, B, C)
        return tokens.permute(1, 2, 0).reshape_as(features).to(features.dtype)
