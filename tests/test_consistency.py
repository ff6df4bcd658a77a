"""Sharpening, mutual consistency and ramp-up."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_caml.consistency import consistency_loss, cross_pseudo_loss, full_precision, rampup, sharpen
from nnunet_caml.labels import LabelSpace

logits = st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 5), st.integers(1, 5)).map(
    lambda s: torch.randn(s, dtype=torch.float64) * 3
)


@given(logits, st.floats(0.05, 1))
@settings(max_examples=30)
def test_sharpening_sums_to_one_and_is_the_formula(x, temperature):
    p = x.softmax(1) ** (1 / temperature)
    torch.testing.assert_close(sharpen(x, temperature), p / p.sum(1, keepdim=True))
    torch.testing.assert_close(sharpen(x, temperature).sum(1), torch.ones_like(x[:, 0]))


@given(st.integers(1, 4), st.floats(0.05, 1))
@settings(max_examples=30)
def test_two_classes_and_regions_are_the_two_class_formula(size, temperature):
    x = torch.randn(2, 2, size, size, dtype=torch.float64)
    for p, sharpened in (
        (x.softmax(1), sharpen(x, temperature)),
        (x.sigmoid(), sharpen(x, temperature, regions=True)),
    ):
        power, rest = p ** (1 / temperature), (1 - p) ** (1 / temperature)
        torch.testing.assert_close(sharpened, power / (power + rest))


def test_finite_where_probabilities_are_zero_and_one():
    x = torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]]).transpose(0, 1).requires_grad_()
    for regions in (False, True):
        loss = consistency_loss(x, x.flip(1), regions=regions)
        loss.backward()
        assert loss.isfinite()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    x = torch.randn(1, 3, 4, 4).half()
    assert sharpen(x).dtype == torch.float32
    assert consistency_loss(x, x.flip(1)).dtype == torch.float32


def test_detached_target_stops_the_gradient_of_that_side():
    v, a = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64).unbind(0)
    v.requires_grad_()
    consistency_loss(v, a, detach_target=True).backward()
    w = v.detach().clone().requires_grad_()
    (w.softmax(1) - sharpen(a)).square().mean().backward()
    torch.testing.assert_close(v.grad, w.grad)


def test_ramp_up_is_over_at_its_length():
    assert rampup(0, 0) == 1
    assert rampup(5, 5) == 1
    assert 0 < rampup(0, 10) < rampup(5, 10) < 1


SPACES = {
    "labels": LabelSpace(3),
    "ignore": LabelSpace(3, ignore_label=3, has_ignore=True),
    "regions": LabelSpace(3, regions=True),
    "regions and ignore": LabelSpace(3, regions=True, has_ignore=True),
}


@pytest.mark.parametrize("name", SPACES)
def test_cross_pseudo_supervision_with_nnunets_losses(name: str):
    """Labels are the other's predictions, all of them count, and the gradient is that of a loss with fixed labels."""
    labels = SPACES[name]
    loss: nn.Module
    if labels.regions:
        loss = DC_and_BCE_loss({}, {}, use_ignore_label=labels.has_ignore, dice_class=MemoryEfficientSoftDiceLoss)
    else:
        loss = DC_and_CE_loss({}, {}, ignore_label=labels.ignore_label, dice_class=MemoryEfficientSoftDiceLoss)
    v, a = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64).unbind(0)
    for x in (v, a):
        classes, annotated = labels.target(labels.as_target(x))
        assert annotated.all()
        assert torch.equal(classes, labels.predicted(x))
    v.requires_grad_()
    cross_pseudo_loss(v, a, loss, labels).backward()
    w = v.detach().clone().requires_grad_()
    (loss(w, labels.as_target(a)) / 2).backward()
    assert v.grad is not None
    assert v.grad.any()
    torch.testing.assert_close(v.grad, w.grad)
    same = (
        100 * (2 * labels.as_target(v)[:, :3].double() - 1)
        if labels.regions
        else 100 * nn.functional.one_hot(v.argmax(1), 3).movedim(-1, 1).double()
    )
    assert cross_pseudo_loss(same, same, loss, labels) < -0.99


@pytest.mark.parametrize("regions", [False, True])
def test_the_papers_consistency_is_the_formula(regions: bool):
    v, a = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64).unbind(0)
    p_v, p_a = (x.sigmoid() if regions else x.softmax(1) for x in (v, a))
    sharp_v, sharp_a = (sharpen(x, 0.1, regions) for x in (v, a))
    expected = ((p_v - sharp_a) ** 2).mean() + ((p_a - sharp_v) ** 2).mean()
    torch.testing.assert_close(consistency_loss(v, a, 0.1, regions), expected)


def test_detached_targets_stop_the_gradient_of_either_side():
    x = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    v, a = (y.clone().requires_grad_() for y in x)
    consistency_loss(v, a, detach_target=True).backward()
    for ours, other in ((v, a), (a, v)):
        w = ours.detach().clone().requires_grad_()
        (w.softmax(1) - sharpen(other.detach())).square().mean().backward()
        torch.testing.assert_close(ours.grad, w.grad)


def test_mps_is_not_asked_for_no_mixed_precision():
    """torch 2.3 and 2.4 refuse to be asked."""
    assert isinstance(full_precision(torch.device("mps")), nullcontext)
