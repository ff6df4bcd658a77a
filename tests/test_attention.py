"""Cross-sample mutual attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnunet_caml import attention
from nnunet_caml.attention import AttentionLayer, CrossSampleMutualAttention, dropout_attention

shapes = st.tuples(st.integers(1, 4), st.sampled_from([4, 6, 8, 12]), st.lists(st.integers(1, 4), min_size=2, max_size=3)).map(
    lambda s: (s[0], s[1], *s[2])
)


@given(shapes)
@settings(max_examples=20)
def test_identity_in_evaluation(shape):
    x = torch.randn(shape)
    assert torch.equal(CrossSampleMutualAttention(shape[1]).eval()(x), x)


@given(shapes, st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_equivariant_under_a_permutation_of_the_samples(shape, random):
    cma = CrossSampleMutualAttention(shape[1], dropout=0.0).double().train()
    x = torch.randn(shape, dtype=torch.float64)
    order = list(range(shape[0]))
    random.shuffle(order)
    torch.testing.assert_close(cma(x[order]), cma(x)[order])


def test_gradient_flows_from_an_unlabelled_output_to_a_labelled_input():
    x = torch.randn(4, 8, 3, 3, 3, requires_grad=True)
    cma = CrossSampleMutualAttention(8).train()
    (cma(x)[2:] * torch.randn(2, 8, 3, 3, 3)).sum().backward()
    assert x.grad is not None
    assert x.grad[:2].abs().sum() > 0


def test_layer_equals_torchs_own_without_dropout():
    layer = AttentionLayer(12, 4, 48, 0.0).double()
    reference = nn.TransformerEncoderLayer(12, 4, 48, 0.0, batch_first=True).double()
    reference.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(3, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference(x))


@pytest.mark.parametrize("dropout", [0.25, 0.5])
def test_dropout_keeps_the_right_share_independently(dropout):
    torch.manual_seed(0)
    # with equal scores and unit values, an output entry is (kept weights) / (T (1 - dropout))
    t = 64
    zeros, ones = torch.zeros(2000, t, 1), torch.ones(2000, t, 1)
    kept = dropout_attention(zeros, zeros, ones, dropout) * t * (1 - dropout)
    torch.testing.assert_close(kept, kept.round(), atol=1e-3, rtol=0)
    # binomial(T, 1 - dropout): mean and variance; the standard error of the mean is 0.01 of 2000 * 64 draws
    assert kept.mean().item() == pytest.approx(t * (1 - dropout), abs=0.06)
    assert kept.var().item() == pytest.approx(t * dropout * (1 - dropout), rel=0.03)


def test_heads_divide_any_number_of_channels():
    assert CrossSampleMutualAttention(6).intra.heads == 3
    assert CrossSampleMutualAttention(7).intra.heads == 1


def test_many_sequences_go_in_several_calls(monkeypatch):
    query, key, value = torch.randn(3, 7, 2, 4, 3)
    whole = dropout_attention(query, key, value, 0.0)
    attend, sizes = attention.F.scaled_dot_product_attention, []
    monkeypatch.setattr(attention, "MOST_SEQUENCES", 7)  # of 2 heads
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda q, *rest, **kw: sizes.append(len(q)) or attend(q, *rest, **kw)
    )
    torch.testing.assert_close(dropout_attention(query, key, value, 0.0), whole)
    assert sizes == [3, 3, 1]
