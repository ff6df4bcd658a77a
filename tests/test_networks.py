"""The auxiliary network, from the plans of every kind of U-Net that nnU-Net makes."""

import copy
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_caml.attention import CrossSampleMutualAttention
from nnunet_caml.networks import (
    FeatureTap,
    InterpolatingUpsample,
    SharedEncoderAuxiliary,
    attention_stage,
    checkpoint_activations,
    copy_matching,
    make_auxiliary,
    require_unet,
)

ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 1]]


def network(
    kind: str = "PlainConvUNet", dim: int = 3, strides: list | None = None, norm: str = "torch.nn.InstanceNorm{}d"
) -> nn.Module:
    strides = strides or [[1] * dim, [2] * dim, [2] * dim, [2] * dim, [2] * dim]
    n = len(strides)
    blocks = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    kwargs = {
        "n_stages": n,
        "features_per_stage": [4 * 2**i for i in range(n)],
        "conv_op": f"torch.nn.Conv{dim}d",
        "kernel_sizes": [[3] * dim] * n,
        "strides": strides,
        blocks: [1] * n,
        "n_conv_per_stage_decoder": [1] * (n - 1),
        "conv_bias": True,
        "norm_op": norm.format(dim),
        "norm_op_kwargs": {"affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = f"dynamic_network_architectures.architectures.unet.{kind}"
    return get_network_from_plans(name, kwargs, ["conv_op", "norm_op", "nonlin"], 2, 3, deep_supervision=True)


KINDS = [
    ("PlainConvUNet", 3, None),
    ("PlainConvUNet", 2, None),
    ("ResidualEncoderUNet", 3, None),
    ("ResidualEncoderUNet", 2, None),
    ("PlainConvUNet", 3, ANISOTROPIC),
]


@pytest.mark.parametrize(("kind", "dim", "strides"), KINDS)
def test_auxiliary_has_the_outputs_of_the_plans_network(kind, dim, strides):
    v = network(kind, dim, strides)
    a = make_auxiliary(network(kind, dim, strides), 4, 0.5, True, 8.0)
    x = torch.randn(3, 2, *[32] * dim)
    for u, w in zip(v(x), a(x), strict=True):
        assert u.shape == w.shape
    assert sum(isinstance(m, CrossSampleMutualAttention) for m in a.modules()) == 1
    assert not any(isinstance(m, nn.ConvTranspose2d | nn.ConvTranspose3d) for m in a.modules())
    sum(o.sum() for o in a(x)).backward()
    assert all(p.grad is not None for p in a.parameters())
    # CMA feeds the skip connection as well as the next stage
    skips = a.encoder(x)
    stage = next(i for i, s in enumerate(a.encoder.stages) if isinstance([*s.children()][-1], CrossSampleMutualAttention))
    assert torch.allclose(skips[stage].transpose(1, -1).std(-1), torch.ones(()), atol=0.1)  # LayerNorm came last


def test_evaluation_has_no_cross_talk_between_samples():
    a = make_auxiliary(network(), 4, 0.5, True, 8.0).eval()
    x = torch.randn(2, 2, 32, 32, 32)
    torch.testing.assert_close(a(x)[0][:1], a(x[:1])[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("strides", "stage"),
    [
        ([[1] * 3] + [[2] * 3] * 4, 3),  # V-Net's: the 4th of 5
        ([[1] * 3] + [[2] * 3] * 2, 2),  # nothing as deep: the deepest
        ([[1, 1]] + [[2, 2]] * 6, 3),
        ([[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]], 4),  # 7 halvings at stage 3, 10 at 4: 9 wanted
        ([[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]], 4),  # 8 at stage 3, 10 at 4: the deeper
    ],
)
def test_attention_stage_by_token_count(strides, stage):
    assert attention_stage(strides) == stage


def test_convolution_before_interpolation_equals_after():
    up = InterpolatingUpsample(nn.Conv3d, 4, 3, [2, 1, 3], bias=True).double()
    x = torch.randn(2, 4, 3, 4, 5, dtype=torch.float64)
    after = up.conv(nn.functional.interpolate(x, scale_factor=up.scale, mode="trilinear"))
    torch.testing.assert_close(up(x), after)
    assert up(x).shape == (2, 3, 6, 4, 15)


def test_tap_gives_the_last_decoder_features_once_and_only_in_training():
    v = network()
    tap = FeatureTap(v, skips=True)
    x = torch.randn(2, 2, 32, 32, 32)
    logits = v(x)[0]
    features = tap.take()
    layer = v.decoder.seg_layers[-1]
    torch.testing.assert_close(nn.functional.conv3d(features, layer.weight, layer.bias), logits)
    assert [s.shape[1] for s in tap.take_skips()] == [4, 8, 16, 32, 64]
    v.eval()
    v(x)
    with pytest.raises(AssertionError):
        tap.take()
    assert set(v.state_dict()) == set(network().state_dict())


def test_shared_encoder_uses_the_vanilla_one():
    v = network()
    tap = FeatureTap(v, skips=True)
    a = SharedEncoderAuxiliary(make_auxiliary(network(), 4, 0.0, True, 8.0), v.encoder)
    v(torch.randn(2, 2, 32, 32, 32))
    outputs = a(tap.take_skips())
    assert [o.shape[2] for o in outputs] == [32, 16, 8, 4]
    assert not {id(p) for p in a.parameters()} & {id(p) for p in v.parameters()}
    sum(o.sum() for o in outputs).backward()
    assert v.encoder.stages[0][0].convs[0].conv.weight.grad.abs().sum() > 0


def test_a_shared_encoder_keeps_the_statistics_of_v():
    """Batch normalisation below CMA runs for V and for A; V predicts with what it has seen itself."""
    v = network(norm="torch.nn.BatchNorm3d")
    tap = FeatureTap(v, skips=True)
    a = SharedEncoderAuxiliary(make_auxiliary(network(norm="torch.nn.BatchNorm3d"), 4, 0.0, True, 8.0), v.encoder)
    v(torch.randn(2, 2, 32, 32, 32))
    before = {name: buffer.clone() for name, buffer in v.encoder.named_buffers()}
    own = {name: buffer.clone() for name, buffer in a.named_buffers()}
    first = a(skips := tap.take_skips())
    assert before
    for name, buffer in v.encoder.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert not all(torch.equal(buffer, own[name]) for name, buffer in a.named_buffers()), "A's decoder has some of its own"
    stages = v.encoder.stages[a.stage + 1 :]
    expected = [*skips[: a.stage], a.attention(skips[a.stage])]
    for stage in stages:
        expected.append(stage(expected[-1]))
    torch.testing.assert_close(first[0], a.decoder(expected)[0])


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_weights_are_copied_where_they_fit(kind):
    v = network(kind)
    a = make_auxiliary(network(kind), 4, 0.5, True, 8.0)
    before = copy.deepcopy(a.state_dict())
    number = copy_matching(v, a)
    copied = [k for k, x in a.state_dict().items() if not torch.equal(x, before[k])]
    parts = ("transpconvs", "seg_layers", "stages.3.1.")  # CMA is the second part of its stage
    assert number == len([n for n, _ in a.named_parameters() if not any(part in n for part in parts)])
    assert not any("seg_layers" in k or "transpconvs" in k for k in copied)
    x = torch.randn(1, 2, 32, 32, 32)
    for u, w in zip(v.eval().encoder(x), a.eval().encoder(x), strict=True):
        torch.testing.assert_close(u, w)


def test_other_networks_are_refused_with_a_sentence():
    with pytest.raises(NotImplementedError, match="Sequential of these plans has no encoder"):
        require_unet(nn.Sequential())


def test_compiled_networks_are_made_for_either_batch_size(make_trainer, monkeypatch):
    """Kernels that are to fit any size do without the better layout of convolutions."""
    sizes = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Any:
        values = [node.meta.get("example_value") for node in graph.graph.nodes if node.op == "placeholder"]
        sizes.extend(v.shape[0] for v in values if isinstance(v, torch.Tensor) and v.ndim == 5 and v.shape[1] == 1)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: real(module, backend=backend))
    trainer = make_trainer()
    monkeypatch.setattr(trainer, "_do_i_compile", lambda: True)
    with torch._dynamo.config.patch(automatic_dynamic_shapes=True, cache_size_limit=8):
        trainer.initialize()
        patch = trainer.configuration_manager.patch_size
        for n in (2, 4, 2):
            for net in (trainer.network, trainer.caml.auxiliary):
                assert net(torch.randn(n, 1, *patch))[0].shape[0] == n
        assert torch._dynamo.config.cache_size_limit >= 64  # nnU-Net's compiled Dice loss alone may need more than 8
    assert {2, 4} <= set(sizes)
    assert all(type(n) is int for n in sizes), "a symbol instead of a number"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_taps_work_in_compiled_networks_without_recompiling(kind):
    """Traced by torch.compile without its code generator, which is slow and needs a compiler."""
    v, a = network(kind), make_auxiliary(network(kind), 4, 0.5, True, 8.0)
    taps = FeatureTap(v), FeatureTap(a)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    for tap, module in zip(taps, (v, a), strict=True):
        compiled = torch.compile(module, backend=counter)
        before = None
        for _ in range(3):
            logits = compiled(torch.randn(2, 2, 32, 32, 32))[0]
            features = tap.take()
            layer = module.decoder.seg_layers[-1]
            torch.testing.assert_close(nn.functional.conv3d(features, layer.weight, layer.bias), logits, rtol=1e-3, atol=1e-4)
            features.sum().backward()
            before = counter.frame_count if before is None else before
            assert counter.frame_count == before
        assert any(p.grad is not None and p.grad.any() for p in module.encoder.stages[0].parameters())


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        ("PlainConvUNet", "torch.nn.InstanceNorm{}d"),
        ("ResidualEncoderUNet", "torch.nn.InstanceNorm{}d"),
        ("PlainConvUNet", "torch.nn.BatchNorm{}d"),
    ],
)
def test_activation_checkpointing_gives_the_same_gradients_with_less_kept(kind: str, norm: str):
    plain = make_auxiliary(network(kind, norm=norm), 4, 0.5, True, 8.0).double()
    frugal = copy.deepcopy(plain)
    checkpoint_activations(frugal)
    assert list(frugal.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 2, 32, 32, 32, dtype=torch.float64)
    gradients, kept = [], []
    for net in (plain, frugal):
        storages: dict[int, int] = {}

        def keep(t: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = sum(o.square().mean() for o in net(x))
        kept.append(sum(storages.values()))
        loss.backward()
        gradients.append([p.grad for p in net.parameters()])
    assert kept[1] < 0.7 * kept[0]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    for (name, a), b in zip(plain.named_buffers(), frugal.buffers(), strict=True):  # running statistics, written once
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x)[0], frugal.eval()(x)[0])


def test_a_shared_encoder_leaves_nothing_of_another_one():
    v = network()
    a = SharedEncoderAuxiliary(make_auxiliary(network(), 4, 0.0, True, 8.0), v.encoder)
    assert not [name for name, _ in a.named_parameters() if "encoder" in name]


def test_statistics_of_v_go_on_after_a_has_run():
    v = network(norm="torch.nn.BatchNorm3d")
    tap = FeatureTap(v, skips=True)
    a = SharedEncoderAuxiliary(make_auxiliary(network(norm="torch.nn.BatchNorm3d"), 4, 0.0, True, 8.0), v.encoder)
    for _ in range(2):
        before = {name: buffer.clone() for name, buffer in v.encoder.named_buffers()}
        v(torch.randn(2, 2, 32, 32, 32))
        assert not [name for name, buffer in v.encoder.named_buffers() if torch.equal(buffer, before[name])]
        a(tap.take_skips())


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_shared_encoder_with_recomputed_activations_trains_as_without(compiled: bool):
    """With batch normalisation, whose statistics are those of V's pass, once a step."""
    of_both = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        v, a = (network(norm="torch.nn.BatchNorm3d").double() for _ in range(2))
        a = make_auxiliary(a, 4, 0.0, True, 8.0).double()
        if recomputed:
            for net in (v, a):
                checkpoint_activations(net)
        a = SharedEncoderAuxiliary(a, v.encoder)
        tap = FeatureTap(v, skips=True)
        run_v, run_a = (torch.compile(net, backend="aot_eager") if compiled and recomputed else net for net in (v, a))
        for _ in range(2):
            outputs = [*run_v(torch.randn(2, 2, 32, 32, 32, dtype=torch.float64)), *run_a(tap.take_skips())]
            sum(o.square().mean() for o in outputs).backward()
        of_both.append([[p.grad for p in net.parameters()] + list(net.buffers()) for net in (v, a)])
    for plain, frugal in zip(*of_both, strict=True):
        for x, y in zip(plain, frugal, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-12)


def test_tap_keeps_nothing_without_gradients():
    v = network()
    tap = FeatureTap(v)
    with torch.no_grad():
        v(torch.randn(2, 2, 32, 32, 32))
    with pytest.raises(AssertionError):
        tap.take()
