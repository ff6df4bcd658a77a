"""Changes on trial do what their names say."""

import numpy as np
import torch

from study import trials


def started(make_trainer, kind: type):
    trainer = make_trainer()
    trainer.__class__ = kind
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.iteration = 10**6  # after the ramp-up
    return trainer


def test_views_share_their_geometry_and_differ_in_intensity(make_trainer):
    torch.manual_seed(0)
    trainer = started(make_trainer, trials.nnUNetTrainerCAML_views)
    patches = np.concatenate([next(trainer.dataloader_train)["unlabeled"].numpy() for _ in range(20)])
    assert patches.shape[1] == 2
    alike = [np.corrcoef(*patch.reshape(2, -1))[0, 1] for patch in patches]
    assert np.median(alike) > 0.9
    assert sum(not np.allclose(*patch) for patch in patches) > len(patches) / 4


def test_each_network_gets_its_view(make_trainer):
    trainer = started(make_trainer, trials.nnUNetTrainerCAML_views)
    batch = next(trainer.dataloader_train)
    inputs = []
    for network in (trainer.network, trainer.caml.auxiliary):
        network.encoder.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].clone()))
    assert np.isfinite(trainer.train_step(batch)["consistency"])
    for view, images in enumerate(inputs):
        assert torch.equal(images, torch.cat((batch["data"], batch["unlabeled"][:, view : view + 1])))


def test_cross_pseudo_supervision_is_nnunets_loss_under_the_others_labels(make_trainer):
    trainer = started(make_trainer, trials.nnUNetTrainerCAML_crossPseudo)
    batch = next(trainer.dataloader_train)
    outputs = []
    for network in (trainer.network, trainer.caml.auxiliary):
        network.decoder.register_forward_hook(lambda _module, _args, output: outputs.append(output[0]))
    images = torch.cat((batch["data"], batch["unlabeled"]))
    losses, _ = trainer.losses(images, batch["target"], list(batch["keys"]))
    v, a = (o[len(batch["data"]) :] for o in outputs)
    whole = trainer.loss.loss
    expected = (whole(v, a.argmax(1, keepdim=True)) + whole(a, v.argmax(1, keepdim=True))) / 2
    torch.testing.assert_close(losses["consistency"], expected)
    losses["consistency"].backward()
    for network in (trainer.network, trainer.caml.auxiliary):
        assert any(p.grad.any() for p in network.encoder.parameters() if p.grad is not None)
