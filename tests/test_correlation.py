"""Omni-correlation consistency."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_caml.correlation import (
    FEWEST_VOXELS,
    _RowCrossEntropy,
    correlation_logits,
    occ_loss,
    select_voxels,
    voxels_per_class,
)
from nnunet_caml.trainer import nnUNetTrainerCAML


def inputs(n: int = 40, m: int = 24, d: int = 8, dtype: torch.dtype = torch.float64):
    v, a, memory = (torch.randn(k, d, dtype=dtype) * 0.3 for k in (n, n, m))
    return v.requires_grad_(), a.requires_grad_(), torch.rand(n) < 0.8, memory, torch.arange(m) % 3 > 0


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_gradients_worked_out_by_hand_are_the_derivatives(similarity):
    v, a, valid, memory, there = inputs(6, 9, 4)
    assert torch.autograd.gradcheck(lambda x, y: occ_loss(x, y, valid, memory, there, 0.5, similarity).loss, (v, a))


def test_equals_the_formula_across_chunks(monkeypatch):
    monkeypatch.setattr(_RowCrossEntropy, "CHUNK", 7)
    v, a, valid, memory, there = inputs()
    rows = [correlation_logits(x[valid], memory[there], torch.ones(int(there.sum())).bool()).softmax(1) for x in (v, a)]
    expected = -(rows[1] * (rows[0] + 1e-8).log()).sum(1).mean()
    result = occ_loss(v, a, valid, memory, there)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.row_peak, rows[0].amax(1).mean())
    assert not result.row_peak.requires_grad


@given(st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_order_of_memory_and_voxels_does_not_matter(random):
    v, a, valid, memory, there = inputs()
    loss = occ_loss(v, a, valid, memory, there).loss
    i, j = list(range(len(v))), list(range(len(memory)))
    random.shuffle(i)
    random.shuffle(j)
    torch.testing.assert_close(occ_loss(v[i], a[i], valid[i], memory[j], there[j]).loss, loss)


@given(st.floats(-4, 4))
@settings(max_examples=20)
def test_finite_in_half_precision_whatever_the_size(exponent):
    v, a, valid, memory, there = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.float16):
        x = (v * 10**exponent).clamp(-6e4, 6e4).half()
        y = (a * 10**exponent).clamp(-6e4, 6e4).half()
        loss = occ_loss(x, y, valid, memory, there).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert loss.isfinite()
    assert v.grad is not None
    assert v.grad.isfinite().all()


def test_nothing_to_compare_gives_zero_and_no_gradient():
    v, a, valid, memory, there = inputs()
    for nothing in ((valid & False, there), (valid, there & False)):
        loss = occ_loss(v, a, nothing[0], memory, nothing[1]).loss
        loss.backward()
        assert loss.item() == 0
        assert not v.grad.any()


def test_cosine_ignores_the_length_of_embeddings():
    v, a, valid, memory, there = inputs()
    loss = occ_loss(v, a, valid, memory, there, similarity="cosine").loss
    torch.testing.assert_close(occ_loss(7 * v, 0.1 * a, valid, 3 * memory, there, similarity="cosine").loss, loss)
    with pytest.raises(ValueError, match="'euclid'"):
        occ_loss(v, a, valid, memory, there, similarity="euclid")


def test_most_confident_agreeing_voxels_of_each_class_are_selected():
    predicted = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    agree = torch.tensor([1, 1, 1, 1, 0, 1, 1, 1]).bool()
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.9, 0.9, 0.2, 0.3, 0.1])
    chosen = select_voxels(agree, predicted, confidence, 3, 2)
    # class 1 has a single agreeing voxel and gives none
    assert sorted(chosen.positions[chosen.valid].tolist()) == [0, 1, 5, 6]


def test_the_defaults_give_the_papers_number_of_voxels_on_the_papers_patches():
    trainer = nnUNetTrainerCAML
    bounds = trainer.num_filtered, trainer.max_filtered, trainer.max_filtered_share
    assert voxels_per_class(2 * 112 * 112 * 80, 2, *bounds) == 12800
    assert voxels_per_class(2 * 40 * 56 * 40, 2, *bounds) < 1200


@given(st.integers(1, 10**7), st.integers(2, 50), st.integers(1, 20000), st.integers(1, 30000), st.floats(0.001, 1))
def test_voxels_of_all_classes_stay_within_every_bound(voxels, classes, filtered, together, share):
    n = voxels_per_class(voxels, classes, filtered, together, share)
    assert 1 <= n <= filtered
    assert n == 1 or n * classes <= min(together, max(share * voxels + 0.5, FEWEST_VOXELS))
    if share * voxels >= together:  # large patches: the share plays no part
        assert n == max(1, min(filtered, together // classes))


def test_a_share_of_small_patches_is_rounded_up():
    assert voxels_per_class(2 * 16**3, 2, 12800, 25600, 0.01) == 256


def test_two_voxels_of_a_class_are_enough():
    predicted = torch.tensor([0, 0, 1, 1, 1])
    chosen = select_voxels(torch.ones(5).bool(), predicted, torch.rand(5), 2, 3)
    assert sorted(chosen.positions[chosen.valid].tolist()) == [0, 1, 2, 3, 4]


def test_a_memory_in_half_precision():
    v, a = torch.randn(2, 5, 4)
    memory = torch.randn(6, 4)
    args = torch.ones(5).bool(), torch.ones(6).bool()
    loss = occ_loss(v, a, args[0], memory.half(), args[1]).loss
    torch.testing.assert_close(loss, occ_loss(v, a, args[0], memory.half().float(), args[1]).loss)
