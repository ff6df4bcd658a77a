"""One training step against a slow rewrite from the formulas, in float64; and nnU-Net's own step as a special case."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_caml import copy_paste
from nnunet_caml.consistency import CONSISTENCIES
from nnunet_caml.networks import unwrap


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, unbiased=False, keepdim=True) + norm.eps
    ).sqrt() * norm.weight + norm.bias


def transformer_layer(tokens: Tensor, layer: Any) -> Tensor:
    """One sequence ``(T, C)``, without dropout."""
    q, k, v = (tokens @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, dim=1)
    width = tokens.shape[1] // layer.heads
    parts = []
    for h in range(layer.heads):
        c = slice(h * width, (h + 1) * width)
        parts.append(torch.softmax(q[:, c] @ k[:, c].T / math.sqrt(width), dim=1) @ v[:, c])
    attended = torch.cat(parts, 1) @ layer.self_attn.out_proj.weight.T + layer.self_attn.out_proj.bias
    x = layer_norm(tokens + attended, layer.norm1)
    hidden = torch.relu(x @ layer.linear1.weight.T + layer.linear1.bias)
    return layer_norm(x + hidden @ layer.linear2.weight.T + layer.linear2.bias, layer.norm2)


def cross_sample_attention(x: Tensor, cma: Any) -> Tensor:
    rows = [transformer_layer(sample.flatten(1).T, cma.intra) for sample in x]  # each (positions, C)
    mixed = [transformer_layer(torch.stack([r[p] for r in rows]), cma.inter) for p in range(len(rows[0]))]
    return torch.stack([torch.stack([m[b] for m in mixed]).T for b in range(len(x))]).reshape(x.shape)


def forward(network: Any, x: Tensor, auxiliary: bool) -> tuple[list[Tensor], Tensor]:
    """Outputs, highest resolution first, and the last features."""
    skips = []
    for stage in network.encoder.stages:
        if auxiliary and type(stage[-1]).__name__ == "CrossSampleMutualAttention":
            x = cross_sample_attention(stage[0](x), stage[-1])
        else:
            x = stage(x)
        skips.append(x)
    outputs = []
    for s, up in enumerate(network.decoder.transpconvs):
        if auxiliary:
            size = skips[-s - 2].shape[2:]
            x = F.conv3d(F.interpolate(x, size=size, mode="trilinear", align_corners=False), up.conv.weight, up.conv.bias)
        else:
            x = up(x)
        x = network.decoder.stages[s](torch.cat((x, skips[-s - 2]), 1))
        outputs.append(network.decoder.seg_layers[s](x))
    return outputs[::-1], x


def dice_and_cross_entropy(logits: Tensor, target: Tensor, batch_dice: bool) -> Tensor:
    p = torch.softmax(logits, 1)
    picked = p.gather(1, target)
    cross_entropy = -picked.log().mean()
    dice = []
    groups = [slice(None)] if batch_dice else [slice(b, b + 1) for b in range(len(p))]
    for group in groups:
        for k in range(1, p.shape[1]):
            true = (target[group, 0] == k).double()
            both = (p[group, k] * true).sum()
            dice.append((2 * both + 1e-5) / (p[group, k].sum() + true.sum() + 1e-5))
    return cross_entropy - torch.stack(dice).mean()


def head(x: Tensor, module: Any, training: bool) -> Tensor:
    x = x @ module.hidden.weight.T + module.hidden.bias
    if training:
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + module.norm.eps).sqrt()
    else:  # running statistics of a new head: mean 0, variance 1
        x = x / math.sqrt(1 + module.norm.eps)
    x = torch.relu(x * module.norm.weight + module.norm.bias)
    return x @ module.out.weight.T + module.out.bias


def voxels(x: Tensor) -> Tensor:
    """``(B, C, *spatial)`` to ``(B * positions, C)``."""
    return x.flatten(2).transpose(1, 2).flatten(0, 1)


def set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def slowly_exchanged(x: Tensor, n: int, box: list[tuple[float, float]]) -> Tensor:
    """Voxel by voxel of a grid, whether its middle lies in the box."""
    inside = torch.ones(x.shape[2:], dtype=torch.bool)
    for axis, (first, last) in enumerate(box):
        middle = (torch.arange(x.shape[axis + 2]) + 0.5) / x.shape[axis + 2]
        inside &= ((middle > first) & (middle < last)).reshape([-1 if a == axis else 1 for a in range(x.ndim - 2)])
    return torch.where(inside, torch.cat((x[n:], x[:n])), x)


@pytest.mark.parametrize(("kind", "share"), [*((kind, 0.0) for kind in CONSISTENCIES), ("labels", 2 / 3)])
def test_step_equals_the_formulas(make_trainer, monkeypatch, kind: str, share: float):
    """The paper's step, and the ones with cross pseudo supervision for the consistency, and with copy-paste."""
    set_seed(0)
    boxes: list[Any] = []
    draw_box = copy_paste.random_box
    monkeypatch.setattr(copy_paste, "random_box", lambda *args: boxes.append(draw_box(*args)) or boxes[-1])
    trainer = make_trainer("nnUNetTrainerCAMLShort_paper")
    trainer.consistency = kind
    trainer.copy_paste_share = share
    trainer.attention_dropout = 0.0
    trainer.memory_per_class, trainer.num_filtered, trainer.max_filtered = 6, 9, 27
    trainer.rampup_fraction, trainer.occ_temperature = 0.9, 0.7
    trainer.initialize()
    trainer.network.double()
    trainer.caml.double()
    trainer.caml.train()
    # else all is background and the rest is decided by rounding
    for network in (unwrap(trainer.network), unwrap(trainer.caml.auxiliary)):
        torch.nn.init.normal_(network.decoder.seg_layers[-1].weight, std=0.7)
    n, cases = 2, trainer.do_split()[0][:2]
    images = torch.randn(2 * n, 1, *trainer.configuration_manager.patch_size, dtype=torch.float64)
    with torch.no_grad():
        outputs_v, _ = forward(unwrap(trainer.network), images, False)
        outputs_a, _ = forward(unwrap(trainer.caml.auxiliary), images, True)
    agreed = outputs_v[0][:n].argmax(1, keepdim=True)
    noise = torch.randint(0, 3, agreed.shape)
    target = [torch.where(torch.rand(agreed.shape) < 0.7, agreed, noise)]
    target += [torch.randint(0, 3, (n, 1, *o.shape[2:])) for o in outputs_v[1:]]

    samples, totals = [], []
    draw = trainer.caml.memory.sample

    def sample():
        samples.append(draw())
        return samples[-1]

    def backward(total: Tensor) -> None:
        totals.append(total.detach())
        total.backward()

    trainer.caml.memory.sample, trainer.update = sample, backward
    trainer.iteration = 3
    batch = {"data": images[:n], "unlabeled": images[n:], "target": [t.double() for t in target], "keys": cases}
    values = trainer.train_step(batch)
    parameters = [*trainer.network.parameters(), *trainer.caml.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
    assert samples[0].valid.all(), "the test should have a full memory"

    # from the formulas
    assert len(boxes) == (share > 0)
    seen = slowly_exchanged(images, n, boxes[0]) if share else images
    outputs_v, features_v = forward(unwrap(trainer.network), seen, False)
    if share:
        assert not torch.equal(seen, images)
        outputs_v, features_v = [slowly_exchanged(o, n, boxes[0]) for o in outputs_v], slowly_exchanged(features_v, n, boxes[0])
    outputs_a, features_a = forward(unwrap(trainer.caml.auxiliary), images, True)
    scales = len(target)
    weights = [0.0 if i == scales - 1 else 2.0**-i for i in range(scales)]
    supervised = 0.0
    for outputs in (outputs_v, outputs_a):
        for w, o, t in zip(weights, outputs, target, strict=True):
            if w:
                loss = dice_and_cross_entropy(o[:n], t, trainer.configuration_manager.batch_dice)
                supervised = supervised + w / sum(weights) * loss

    p_v, p_a = torch.softmax(outputs_v[0], 1), torch.softmax(outputs_a[0], 1)
    sharp_v, sharp_a = (p**10 / (p**10).sum(1, keepdim=True) for p in (p_v, p_a))
    consistency = ((p_v - sharp_a) ** 2).mean() + ((p_a - sharp_v) ** 2).mean()
    if kind == "labels":
        batch_dice = trainer.configuration_manager.batch_dice
        pairs = ((outputs_v[0][n:], p_a[n:]), (outputs_a[0][n:], p_v[n:]))
        consistency = sum(dice_and_cross_entropy(o, p.argmax(1, keepdim=True), batch_dice) for o, p in pairs) / 2

    caml = trainer.caml
    # what the memory was drawn from: voxels of the labelled half that both get right
    rows_v, rows_a = voxels(features_v), voxels(features_a)
    class_v, class_a = voxels(p_v).argmax(1), voxels(p_a).argmax(1)
    true = voxels(target[0]).squeeze(1)
    labeled = torch.arange(len(class_v)) < len(true)
    correct = (class_v[labeled] == true) & (class_a[labeled] == true)
    with torch.no_grad():
        expected = (
            head(rows_v[labeled], caml.heads_v.projection, False) + head(rows_a[labeled], caml.heads_a.projection, False)
        ) / 2
    for k in range(3):
        drawn = samples[0].embeddings[k * 6 : (k + 1) * 6]
        distances = (drawn[:, None] - expected[correct & (true == k)]).norm(dim=-1)
        assert distances.amin(1).max() < 1e-9
        assert len(distances.argmin(1).unique()) == 6, "without replacement"

    # the most confident unlabelled voxels that both give the same class
    confidence = voxels(p_v).amax(1)
    chosen: list[int] = []
    for k in range(3):
        candidates = [i for i in range(len(true), len(class_v)) if class_v[i] == k == class_a[i]]
        assert len(candidates) > 1
        chosen += sorted(candidates, key=lambda i: -confidence[i].item())[:9]
    described = []
    for rows, heads in ((rows_v, caml.heads_v), (rows_a, caml.heads_a)):
        embedded = head(head(rows[chosen], heads.projection, True), heads.prediction, True)
        described.append([torch.softmax(samples[0].embeddings @ f / 0.7, 0) for f in embedded])
    per_voxel = []
    for corr_v, corr_a in zip(*described, strict=True):
        per_voxel.append(-sum(corr_a[j] * torch.log(corr_v[j] + 1e-8) for j in range(len(corr_v))))
    correlation = torch.stack(per_voxel).mean()

    ramp = math.exp(-5 * (1 - 3 / (0.9 * 8)) ** 2)
    total = 0.5 * supervised + ramp * consistency + 0.05 * ramp * correlation
    # nnU-Net sums its Dice in float32, whatever the logits are; all else is float64
    assert torch.isclose(totals[0], total, rtol=1e-6)
    for name, value in (("consistency", consistency), ("correlation", correlation)):
        assert math.isclose(values[name], value.item(), rel_tol=1e-5), name
    for p, actual, wanted in zip(parameters, gradients, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        zero = torch.zeros_like(p)
        torch.testing.assert_close(zero if actual is None else actual, zero if wanted is None else wanted, rtol=1e-6, atol=1e-9)


def test_with_one_encoder_a_sees_exchanged_boxes_as_well(make_trainer, monkeypatch):
    """And its outputs are put back before anything is compared with them, as V's are."""
    boxes: list[Any] = []
    draw_box = copy_paste.random_box
    monkeypatch.setattr(copy_paste, "random_box", lambda *args: boxes.append(draw_box(*args)) or boxes[-1])
    trainer = make_trainer("nnUNetTrainerCAMLShort_sharedEncoder")
    trainer.copy_paste_share = 2 / 3
    trainer.initialize()
    patch, n, cases = trainer.configuration_manager.patch_size, 2, trainer.do_split()[0][:2]
    given, compared, loss = [], [], trainer.loss.forward
    monkeypatch.setattr(trainer.loss, "forward", lambda outputs, target: compared.append(outputs) or loss(outputs, target))
    for network in (unwrap(trainer.network), trainer.caml.auxiliary):
        network.register_forward_hook(lambda _module, _args, outputs: given.append(outputs))
    scales = [torch.tensor(patch) * torch.tensor(s) for s in trainer._get_deep_supervision_scales()]
    target = [torch.zeros(n, 1, *map(int, size.round())) for size in scales]
    features, remembered = [], []
    for network in (unwrap(trainer.network), trainer.caml.auxiliary):
        network.decoder.seg_layers[-1].register_forward_hook(lambda _module, args, _outputs: features.append(args[0]))
    monkeypatch.setattr(trainer.caml, "remember", lambda _cases, *voxels: remembered.extend(voxels[:2]))
    trainer.losses(torch.randn(2 * n, 1, *patch), target, cases)
    for before, after in zip(features, remembered, strict=True):
        assert torch.equal(after, slowly_exchanged(before, n, boxes[0])[:n])
    for network in range(2):
        for before, after in zip(given[network], compared[network], strict=True):
            expected = slowly_exchanged(before, n, boxes[0])[:n]
            assert not torch.equal(expected, before[:n])
            assert torch.equal(after, expected)


def test_without_the_unlabelled_losses_v_is_nnunets_network(make_trainer):
    """With both weights at 0 and a supervised weight of 1, V learns exactly as the network of nnUNetTrainer."""
    set_seed(0)
    caml = make_trainer()
    caml.supervised_weight, caml.lambda_c, caml.lambda_o = 1.0, 0.0, 0.0
    caml.on_train_start()
    plain = make_trainer("nnUNetTrainerShort")
    plain.initialize()
    plain.network.load_state_dict(caml.network.state_dict())
    scale = {"loss": 1}
    for trainer in (caml, plain):
        trainer.network.double()
        trainer.network.train()
        trainer.loss = lambda *args, loss=trainer.loss: scale["loss"] * loss(*args)
    caml.caml.double()
    caml.on_train_epoch_start()
    plain.lr_scheduler.step(0)
    for step in range(20):
        scale["loss"] = 1000 if step % 2 else 1  # so that every other gradient is clipped
        caml.dataloader_train.wanted = lambda step=step: step < 15  # unlabelled patches make no difference either
        batch = next(caml.dataloader_train)
        batch |= {key: batch[key].double() for key in ("data", "unlabeled") if key in batch}
        assert ("unlabeled" in batch) == (step < 15)
        ours, theirs = caml.train_step(batch), plain.train_step({"data": batch["data"], "target": batch["target"]})
        assert math.isclose(ours["loss"], float(theirs["loss"]), rel_tol=1e-6), step  # the log is in float32
        if step == 10:  # the next epoch's learning rate
            caml.lr_scheduler.step(1)
            plain.lr_scheduler.step(1)
    for (name, v), p in zip(caml.network.state_dict().items(), plain.network.state_dict().values(), strict=True):
        torch.testing.assert_close(v, p, rtol=1e-8, atol=1e-10, msg=name)
    caml.dataloader_train.finish()


def test_an_overflow_is_over_after_the_step(make_trainer):
    """On a GPU a gradient scaler skips such a step; what the networks gave in it must not be kept elsewhere."""
    trainer = make_trainer()
    trainer.initialize()
    trainer.network.train()
    trainer.caml.train()
    patch, cases = trainer.configuration_manager.patch_size, trainer.do_split()[0][:2]
    images = torch.randn(4, 1, *patch)
    scales = [torch.tensor(patch) * torch.tensor(s) for s in trainer._get_deep_supervision_scales()]
    target = [torch.zeros(2, 1, *map(int, size.round())) for size in scales]
    trainer.losses(images, target, cases)
    spoiled = images.clone()
    spoiled[3, 0, 0, 0, 0] = float("inf")
    broken, _ = trainer.losses(spoiled, target, cases)
    assert not broken["consistency"].isfinite()
    state = trainer.caml.state_dict()
    assert [k for k, x in state.items() if not x.isfinite().all()] == []
    after, _ = trainer.losses(images, target, cases)
    assert all(x.isfinite() for x in after.values())
