"""Memory and OCC of a batch: whose voxels go where, and which settings are used."""

from typing import Any

import pytest
import torch
from torch import nn

from nnunet_caml import learning
from nnunet_caml.labels import LabelSpace
from nnunet_caml.learning import MutualLearning, same_optimizer


def caml_of(*cases: str, **settings: Any) -> MutualLearning:
    return MutualLearning(nn.Identity(), 3, LabelSpace(2, False, None), list(cases), width=4, per_class=6, **settings)


def test_every_case_is_remembered_by_itself():
    caml = caml_of("x", "y")
    features = torch.randn(2, 3, 4, 4, 4)
    target = torch.randint(0, 2, (2, 1, 4, 4, 4)).float()
    predicted = target[:, 0].long()
    predicted[1, :2] = 1 - predicted[1, :2]  # half of x is wrong
    caml.remember(["y", "x"], features, features, predicted, predicted, target)
    caml.eval()
    for sample, case in enumerate(["y", "x"]):
        index = caml.memory.case_index[case]
        right = predicted[sample] == target[sample, 0]
        assert caml.memory.counts[index].tolist() == predicted[sample][right].bincount(minlength=2).tolist()
        for k in range(2):
            rows = features[sample].flatten(1).T[(right & (predicted[sample] == k)).flatten()]
            own = (caml.heads_v.projection(rows) + caml.heads_a.projection(rows)) / 2
            assert (caml.memory.embeddings[index, k][:, None] - own).norm(dim=-1).amin(1).max() < 1e-5


def correlate(caml: MutualLearning) -> Any:
    features, predicted = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 2, (2, 4, 4, 4))
    caml.remember(["x"], features[:1], features[:1], predicted[:1], predicted[:1], predicted[:1, None].float())
    return caml.correlate(features, features, predicted, predicted, torch.rand(2, 4, 4, 4))


def test_settings_of_occ_are_used(monkeypatch):
    caml = caml_of("x", num_filtered=11, max_filtered=17, max_filtered_share=0.03, temperature=0.3, similarity="cosine")
    seen: list[tuple] = []
    for name in ("voxels_per_class", "occ_loss"):
        function = getattr(learning, name)
        monkeypatch.setattr(learning, name, lambda *args, f=function: seen.append(args) or f(*args))
    correlate(caml)
    (bounds, loss) = seen
    assert bounds == (2 * 4**3, 2, 11, 17, 0.03)
    assert loss[5:] == (0.3, "cosine")


def test_mixed_precision_ends_before_the_heads():
    caml = caml_of("x")
    kinds = []
    for head in (caml.heads_v.projection, caml.heads_a.prediction):
        head.hidden.register_forward_hook(lambda _module, _args, output: kinds.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16
        result = correlate(caml)
    assert kinds
    assert set(kinds) == {torch.float32}
    assert result.loss.dtype == torch.float32


@pytest.mark.parametrize("part", ["projection", "prediction"])
def test_fillers_do_not_enter_the_statistics_of_a_head(part: str):
    """On a GPU each class has as many rows as the others, some of which count for nothing."""
    torch.manual_seed(0)
    heads, only_valid = (caml_of("x").heads_v for _ in range(2))
    only_valid.load_state_dict(heads.state_dict())
    rows, valid = torch.randn(20, 3), torch.rand(20) < 0.5
    torch.testing.assert_close(heads(rows, valid)[valid], only_valid(rows[valid]))
    for ours, theirs in zip(getattr(heads, part).buffers(), getattr(only_valid, part).buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_empty_memory_is_compared_to_nothing():
    caml = caml_of("x")
    features, predicted = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 2, (2, 4, 4, 4))
    assert caml.correlate(features, features, predicted, predicted, torch.rand(2, 4, 4, 4)).loss == 0


def test_cases_that_share_the_rows_of_the_memory():
    """With more than max_rows_per_class / per_class of them each has fewer rows than are drawn."""
    caml = caml_of("x", "y", "z", max_rows_per_class=6)
    features, predicted = torch.randn(3, 3, 4, 4, 4), torch.randint(0, 2, (3, 4, 4, 4))
    caml.remember(["x", "y", "z"], features, features, predicted, predicted, predicted[:, None].float())
    assert caml.memory.counts.sum(1).tolist() == [64] * 3
    assert caml.memory.sample().valid.all()


def test_an_optimiser_that_hands_its_settings_on():
    class Wrapped(torch.optim.SGD):
        def __init__(self, params, **settings):
            super().__init__(params, **settings)

    layer = torch.nn.Linear(2, 2)
    ours = same_optimizer(Wrapped(layer.parameters(), lr=0.125, momentum=0.5), layer.parameters())
    assert (ours.defaults["lr"], ours.defaults["momentum"]) == (0.125, 0.5)
