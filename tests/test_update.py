"""What a step does to V, A and the heads: each is clipped by itself, with nnU-Net's optimiser and learning rate."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunet_caml.networks import unwrap


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[::2])
@pytest.mark.parametrize("scaled", [False, True])
def test_v_a_and_heads_learn_each_by_itself(make_trainer, order, scaled):
    trainer = make_trainer()
    trainer.initialize()
    if scaled:
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.dataloader_train = SimpleNamespace()  # which notes its waiting time
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    rate = trainer.optimizer.param_groups[0]["lr"]
    assert 0 < rate < trainer.initial_lr
    parts = [unwrap(trainer.network), unwrap(trainer.caml.auxiliary), nn.ModuleList(trainer.caml.heads())]
    loss, expected = torch.zeros(()), []
    for part, factor in zip(parts, torch.tensor([1e3, 30.0, 1e-4])[list(order)], strict=True):
        parameters = list(part.parameters())
        gradients = [factor * torch.randn_like(p) for p in parameters]
        loss = loss + sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True))
        norm = torch.stack([g.norm() for g in gradients]).norm()
        clip = min(1.0, float(trainer.clip_norm / (norm + 1e-6)))
        for p, g in zip(parameters, gradients, strict=True):
            # the first step of SGD with Nesterov's momentum of 0.99 and nnU-Net's weight decay
            expected.append(p.detach() - rate * 1.99 * (g * clip + trainer.weight_decay * p.detach()))
    trainer.update(loss)
    for p, wanted in zip([p for part in parts for p in part.parameters()], expected, strict=True):
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-4, atol=1e-6)


def test_two_different_networks(make_trainer, monkeypatch, capsys):
    """A learns from V only where the two differ; without pretrained weights nothing is copied."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = make_trainer()
    trainer.initialize()
    before = {k: x.clone() for k, x in trainer.caml.auxiliary.state_dict().items()}
    trainer.on_train_start()
    after = trainer.caml.auxiliary.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    assert "Pretrained weights" not in capsys.readouterr().out
    weights = (next(network.parameters()) for network in (trainer.network, trainer.caml.auxiliary))
    assert not torch.equal(*weights)


def test_weights_of_the_unlabelled_losses_over_the_training(make_trainer):
    trainer = make_trainer()
    trainer.num_epochs, trainer.num_iterations_per_epoch = 10, 10
    trainer.rampup_start_fraction, trainer.rampup_fraction = 0.4, 0.3
    trainer.lambda_c, trainer.lambda_o = 2.0, 0.1
    for iteration, factor in ((0, 0.0), (39, 0.0), (40, 0.0067379), (55, 0.2865048), (70, 1.0), (99, 1.0)):
        trainer.iteration = iteration
        assert trainer.current_weights() == pytest.approx((2 * factor, 0.1 * factor), rel=1e-5), iteration
