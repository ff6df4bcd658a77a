"""Changes on trial do what their names say."""

from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from test_learning import caml_of, correlate

from nnunet_caml import learning
from study import baselines, trials


def started(make_trainer, kind: type):
    trainer = make_trainer()
    trainer.__class__ = kind
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.iteration = 10**6  # after the ramp-up
    return trainer


def test_a_teacher_without_gradients_takes_a_step_under_a_gradient_scaler(make_trainer):
    """As on a GPU, where nnU-Net scales the loss: what has no gradient is left to the moving average."""
    trainer = started(make_trainer, baselines.nnUNetTrainerMeanTeacher)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    networks = (trainer.network, trainer.caml.auxiliary)
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    trainer.train_step(next(trainer.dataloader_train))
    assert all(
        any(not torch.equal(a, b) for a, b in zip(old, network.parameters(), strict=True))
        for old, network in zip(before, networks, strict=True)
    )


def test_a_mean_teacher_is_the_average_of_its_student(make_trainer, monkeypatch):
    """And the student follows what the teacher makes of the unlabelled patches under noise of its own."""
    monkeypatch.setattr("nnunet_caml.preparation.default_num_processes", 1)  # starting a process takes seconds
    torch.manual_seed(0)
    trainer = started(make_trainer, baselines.nnUNetTrainerMeanTeacher)
    trainer.decay = 0.75
    student, teacher = trainer.network, trainer.caml.auxiliary
    with torch.no_grad():
        for p in teacher.parameters():
            p += 0.1 * torch.randn_like(p)
    inputs, outputs = [], []
    for network in (student, teacher):
        network.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].clone()))
        network.register_forward_hook(lambda _module, _args, output: outputs.append([o.detach().clone() for o in output]))
    batch = next(trainer.dataloader_train)
    n, unlabeled = len(batch["data"]), batch["unlabeled"]
    before = [p.detach().clone() for p in student.parameters()], [p.clone() for p in teacher.parameters()]
    values = trainer.train_step(batch)

    assert torch.equal(inputs[0][:n], batch["data"]), "no noise where the labels are"
    noises = [inputs[0][n:] - unlabeled, inputs[1] - unlabeled]
    assert not torch.allclose(*noises, atol=0.05)
    for noise in noises:
        assert 0.09 < noise.std() < 0.1
        assert noise.abs().max() < 0.2001
    s, t = torch.softmax(outputs[0][0][n:], 1), torch.softmax(outputs[1][0], 1)
    assert len(s) == len(t) == len(unlabeled)
    np.testing.assert_allclose(values["consistency"], ((s - t) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(values["loss"], trainer.loss([o[:n] for o in outputs[0]], batch["target"]), rtol=1e-4)
    assert values["loss_a"] == 0
    given = [[(x.argmax(1) == k) for k in (1, 2)] for x in (s, t)]
    np.testing.assert_array_equal(
        values["agreement"], [[(a & b).sum() for a, b in zip(*given, strict=True)], *[[a.sum() for a in x] for x in given]]
    )

    assert max((now - was).abs().max() for now, was in zip(student.parameters(), before[0], strict=True)) > 1e-3
    for now, was, by in zip(teacher.parameters(), before[1], student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * by)
    trainer.iteration, was = 0, next(teacher.parameters()).clone()
    trainer.train_step(batch)  # a mean of few students, in the beginning
    torch.testing.assert_close(next(teacher.parameters()), (was + next(student.parameters())) / 2)


def test_views_share_their_geometry_and_differ_in_intensity(make_trainer):
    torch.manual_seed(0)
    trainer = started(make_trainer, trials.nnUNetTrainerCAML_views)
    patches = np.concatenate([next(trainer.dataloader_train)["unlabeled"].numpy() for _ in range(20)])
    assert patches.shape[1] == 2
    alike = [np.corrcoef(*patch.reshape(2, -1))[0, 1] for patch in patches]
    assert np.median(alike) > 0.9
    assert sum(not np.allclose(*patch) for patch in patches) > len(patches) / 4


def test_a_mirrored_view_is_mirrored_back(make_trainer):
    """With A that only compares positions, mirroring there and back changes nothing."""
    trainer = started(make_trainer, trials.nnUNetTrainerCAML_mirrored)
    batch = next(trainer.dataloader_train)
    images, n = torch.cat((batch["data"], batch["unlabeled"])), len(batch["data"])
    seen, given = [], []
    auxiliary = trainer.caml.auxiliary
    auxiliary.encoder.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
    auxiliary.decoder.register_forward_hook(lambda _module, _args, output: given.append(output[0].clone()))
    auxiliary.register_forward_hook(lambda _module, _args, output: given.append(output[0].clone()))
    axes = set()
    for _ in range(12):
        seen.clear(), given.clear()
        trainer.losses(images, batch["target"], list(batch["keys"]))
        assert torch.equal(seen[0][:n], images[:n])
        found = [c for k in range(4) for c in combinations((2, 3, 4), k) if torch.equal(seen[0][n:], images[n:].flip(c))]
        assert len(found) == 1
        axes.add(found[0])
        inside, outside = given
        assert torch.equal(outside, torch.cat((inside[:n], inside[n:].flip(found[0]))))
    assert len(axes) > 3


def test_a_box_is_exchanged_and_put_back(make_trainer):
    """V sees each voxel of a pair of patches once, in its place, and what it gives is sorted out before the losses."""
    trainer = started(make_trainer, trials.nnUNetTrainerCAML_exchanged)
    batch = next(trainer.dataloader_train)
    images, n = torch.cat((batch["data"], batch["unlabeled"])), len(batch["data"])
    seen, inside, outside = [], [], []
    trainer.network.encoder.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
    trainer.network.decoder.register_forward_hook(lambda _module, _args, output: inside.extend(output))
    trainer.network.register_forward_hook(lambda _module, _args, output: outside.extend(output))
    trainer.losses(images, batch["target"], list(batch["keys"]))
    moved = (seen[0] != images).flatten(1).float().mean(1)
    assert (moved > 0.15).all()
    assert (moved < 0.5).all()
    kept = seen[0] == images
    swapped = torch.cat((images[n:], images[:n]))
    assert torch.equal(torch.where(kept, images, swapped), seen[0])
    assert len(inside) == len(outside) > 1
    for a, b in zip(inside, outside, strict=True):
        other = torch.cat((a[n:], a[:n]))
        assert ((b == a) | (b == other)).all()
        share = ((b != a).any(1)).flatten(1).float().mean(1)
        torch.testing.assert_close(share, moved, atol=0.1, rtol=0)
    assert not trainer.network._forward_pre_hooks


def test_labels_are_those_of_averaged_networks(make_trainer):
    """Both networks learn the labels of networks that lag behind them, and that a mirrored view does not move."""
    trainer = started(make_trainer, trials.nnUNetTrainerCAML_averaged)
    trainer.decay = 0.75
    batch = next(trainer.dataloader_train)
    networks = (trainer.network, trainer.caml.auxiliary)
    before = [[p.clone() for p in average.parameters()] for average in trainer._averages]
    trainer.train_step(batch)
    for average, network, old in zip(trainer._averages, networks, before, strict=True):
        for p, was, now in zip(average.parameters(), old, network.parameters(), strict=True):
            torch.testing.assert_close(p, 0.75 * was + 0.25 * now)

    trainer.mirrored = False
    unlabeled = batch["unlabeled"]
    with torch.no_grad():
        mean = sum(torch.softmax(average(unlabeled)[0], 1) for average in trainer._averages)
    assert torch.equal(trainer._labels(unlabeled), mean.argmax(1, keepdim=True))
    seen = []
    trainer.loss.loss.register_forward_hook(lambda _module, args, _output: seen.append(args[1]))
    images, n = torch.cat((batch["data"], unlabeled)), len(batch["data"])
    trainer.losses(images, batch["target"], list(batch["keys"]))
    assert sum(torch.equal(target, trainer._labels(unlabeled)) for target in seen if len(target) == n) == 2

    trainer.mirrored = True
    inputs = []
    trainer._averages[0].encoder.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].clone()))
    for _ in range(12):
        trainer._labels(unlabeled)
    axes = [c for k in range(4) for c in combinations((2, 3, 4), k)]
    found = {next(c for c in axes if torch.equal(x, unlabeled.flip(c))) for x in inputs}
    assert len(found) > 3


def test_averages_of_a_continued_training_begin_with_its_networks(make_trainer):
    trainer = started(make_trainer, trials.nnUNetTrainerCAML_averaged)
    trainer.train_step(next(trainer.dataloader_train))
    checkpoint = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(checkpoint)
    continued = make_trainer()
    continued.__class__ = trainer.__class__
    continued.initialize()
    continued.load_checkpoint(checkpoint)
    for average, network in zip(continued._averages, (trainer.network, trainer.caml.auxiliary), strict=True):
        for p, saved in zip(average.parameters(), network.parameters(), strict=True):
            assert torch.equal(p, saved)
            assert not p.requires_grad


def test_labels_of_the_other_network_at_all_resolutions(make_trainer):
    """The other's labels, made smaller as nnU-Net makes true ones, by its transform, and weighted as it weights them."""
    trainer = started(make_trainer, trials.nnUNetTrainerCAML_allResolutions)
    levels = len(trainer.loss.weight_factors)
    trainer.loss.weight_factors = tuple(range(levels, 0, -1))  # nnU-Net's is 0 for the lowest, one of two here
    batch = next(trainer.dataloader_train)
    images, n = torch.cat((batch["data"], batch["unlabeled"])), len(batch["data"])
    outputs = {}
    for name, network in (("v", trainer.network), ("a", trainer.caml.auxiliary)):
        network.register_forward_hook(lambda _module, _args, out, name=name: outputs.update({name: [o[n:] for o in out]}))
    losses, _ = trainer.losses(images, batch["target"], list(batch["keys"]))
    smaller = DownsampleSegForDSTransform(trainer._get_deep_supervision_scales())
    expected = 0.0
    for learner, teacher in ("va", "av"):
        label = outputs[teacher][0].argmax(1, keepdim=True)
        targets = [torch.stack(of_samples) for of_samples in zip(*map(smaller._apply_to_segmentation, label), strict=True)]
        assert len(targets) == len(outputs[learner]) == levels > 1
        expected += trainer.loss(outputs[learner], targets) / 2
    torch.testing.assert_close(losses["consistency"], expected)


def test_heads_before_the_choice_see_all_voxels_that_both_agree_on(make_trainer):
    """Where all of these are chosen nothing changes; else the heads' statistics are still those of all."""
    ours, first = learning.MutualLearning, trials.HeadsFirst
    found, statistics = {}, {}
    for most in (1000, 10):
        for kind in (ours, first):
            torch.manual_seed(0)
            caml = caml_of("x", num_filtered=most)
            caml.__class__ = kind
            found[most, kind] = correlate(caml).loss
            statistics[most, kind] = caml.heads_v.projection.norm.running_mean
    torch.testing.assert_close(found[1000, first], found[1000, ours])
    assert found[10, first] != found[10, ours]
    torch.testing.assert_close(statistics[10, first], statistics[1000, ours])
    assert not torch.allclose(statistics[10, ours], statistics[1000, ours])
    trainer = started(make_trainer, trials.nnUNetTrainerCAML_headsFirst)
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["correlation"])
    assert type(trainer.caml) is trials.HeadsFirst
