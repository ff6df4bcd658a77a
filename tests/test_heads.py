"""Heads of OCC."""

import pytest
import torch
from torch import nn

from nnunet_caml.heads import MaskedBatchNorm, NetworkHeads


@pytest.mark.parametrize("count", [2, 5, 20])
def test_masked_batch_norm_is_batch_norm_of_the_valid_rows(count):
    x = torch.randn(20, 6) * 3 + 1
    valid = torch.zeros(20, dtype=torch.bool)
    valid[torch.randperm(20)[:count]] = True
    masked, plain = MaskedBatchNorm(6), nn.BatchNorm1d(6)
    torch.testing.assert_close(masked(x, valid)[valid], plain(x[valid]))
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(masked.named_buffers())[name], buffer)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_leave_the_running_statistics(count):
    norm = MaskedBatchNorm(6)
    out = norm(torch.randn(5, 6), torch.arange(5) < count)
    assert out.isfinite().all()
    assert torch.equal(norm.running_mean, torch.zeros(6))
    assert torch.equal(norm.running_var, torch.ones(6))


def test_embedding_width():
    assert NetworkHeads(5, 16)(torch.randn(7, 5)).shape == (7, 16)


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_an_overflow_leaves_the_running_statistics(broken):
    norm = MaskedBatchNorm(4)
    rows = torch.randn(6, 4)
    norm(rows, torch.ones(6, dtype=torch.bool))
    before = norm.running_mean.clone(), norm.running_var.clone()
    rows[2, 1] = broken
    norm(rows, torch.ones(6, dtype=torch.bool))
    assert torch.equal(before[0], norm.running_mean)
    assert torch.equal(before[1], norm.running_var)
