"""Comparison with the figures that the paper's released code gives, in float64 at 1e-6 relative.

Every file of the folder is read, by pattern, so more files of the same kinds are tested as soon as they are there.
"""

import csv

import numpy as np
import pytest
import torch
from conftest import SHARED

from nnunet_caml.attention import CrossSampleMutualAttention
from nnunet_caml.consistency import consistency_loss, rampup, sharpen
from nnunet_caml.correlation import correlation_logits, occ_loss, select_voxels

ORACLE = SHARED / "oracle"


def files(pattern: str) -> list:
    found = sorted(ORACLE.glob(pattern))
    skip = pytest.mark.skip(reason=f"no reference figures {pattern} in {ORACLE}")
    return [pytest.param(f, id=f.stem) for f in found] or [pytest.param(None, marks=skip)]


def load(file) -> dict[str, torch.Tensor]:
    with np.load(file) as data:
        return {k: torch.from_numpy(data[k]) for k in data}


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """1e-6 of each value, and of the largest one for those near zero."""
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * max(expected.abs().max().item(), 1e-12))


def test_every_file_is_read():
    if not ORACLE.is_dir():
        pytest.skip(f"no folder {ORACLE}")
    known = {f for pattern in ("cma_*.npz", "occ_*.npz", "consistency_*.npz", "rampup*.csv") for f in ORACLE.glob(pattern)}
    assert known == set(ORACLE.iterdir())


@pytest.mark.parametrize("file", files("cma_*.npz"))
def test_oracle_cma(file):
    d = load(file)
    cma = CrossSampleMutualAttention(d["x"].shape[1], heads=4, dropout=0.0).double()
    cma.load_state_dict({k: v for k, v in d.items() if k.startswith(("intra.", "inter."))})
    x = d["x"].clone().requires_grad_()
    out = cma.train()(x)
    assert_equal(out, d["cma_out"])
    out.backward(d["grad_out"])
    assert_equal(x.grad, d["grad_x"])
    intra = cma.intra(d["x"].flatten(2).transpose(1, 2)).transpose(1, 2).reshape_as(d["x"])
    assert_equal(intra, d["intra_out"])


@pytest.mark.parametrize("file", files("consistency_*.npz"))
def test_oracle_consistency(file):
    d = load(file)
    v, a = d["logits_vanilla"].requires_grad_(), d["logits_auxiliary"].requires_grad_()
    temperature = d["temperature"].item()
    assert_equal(sharpen(v, temperature), d["sharpened_vanilla"])
    loss = consistency_loss(v, a, temperature)
    assert_equal(loss, d["loss_consistency"])
    loss.backward()
    assert_equal(v.grad, d["grad_logits_vanilla"])
    assert_equal(a.grad, d["grad_logits_auxiliary"])


@pytest.mark.parametrize("file", files("occ_*.npz"))
def test_oracle_occ(file):
    d = load(file)
    v, a = d["features_vanilla"].requires_grad_(), d["features_auxiliary"].requires_grad_()
    k, temperature = int(d["num_classes"]), d["temperature"].item()
    selection = select_voxels(
        torch.ones(len(v), dtype=torch.bool), d["pseudo_label"], d["confidence"], k, int(d["num_filtered"])
    )
    # the memory as the bank gives it: a block per class, with fillers where a class has none
    per_class = max((len(d[f"memory_class{i}"]) for i in range(k) if f"memory_class{i}" in d), default=4)
    blocks = [d.get(f"memory_class{i}", torch.full((per_class, v.shape[1]), 7.0, dtype=v.dtype)) for i in range(k)]
    there = torch.tensor([f"memory_class{i}" in d for i in range(k)]).repeat_interleave(per_class)
    memory = torch.cat(blocks)

    loss = occ_loss(v[selection.positions], a[selection.positions], selection.valid, memory, there, temperature).loss
    assert_equal(loss, d["loss_occ"])
    loss.backward()
    zero = torch.zeros_like(v)
    assert_equal(v.grad, d.get("grad_features_vanilla", zero))
    assert_equal(a.grad, d.get("grad_features_auxiliary", zero))

    if "correlation_vanilla" in d:
        chosen = selection.positions[selection.valid]
        # the reference lists the voxels of a class in an order of its own: compare by class, sorted by row
        for name, features in (("vanilla", v), ("auxiliary", a)):
            rows = correlation_logits(features[chosen], memory, there, temperature).softmax(1)[:, there]
            expected = d[f"correlation_{name}"]
            assert rows.shape == expected.shape
            assert_equal(sort_rows(rows), sort_rows(expected))


def sort_rows(rows: torch.Tensor) -> torch.Tensor:
    order = np.lexsort(rows.detach().numpy().round(9).T[::-1])
    return rows[torch.from_numpy(order)]


@pytest.mark.parametrize("file", files("rampup*.csv"))
def test_oracle_rampup(file):
    with file.open() as f:
        for row in csv.DictReader(f):
            actual = rampup(float(row["current"]), float(row["rampup_length"]))
            assert actual == pytest.approx(float(row["weight"]), rel=1e-6)
