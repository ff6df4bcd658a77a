"""The lower bound of a step's memory."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_caml import footprint, variants
from nnunet_caml.networks import unwrap

GIB = 2**30


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_counts_what_autograd_keeps(make_trainer: Any, share: bool, recomputed: bool):
    """Where stages are recomputed: their inputs, and the activations of A's last one, with which the backward pass begins."""
    trainer = make_trainer()
    trainer.share_encoder, trainer.activation_checkpointing = share, recomputed
    trainer.initialize()
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    vanilla: Any = unwrap(trainer.network)
    auxiliary: Any = trainer.caml.auxiliary
    last = auxiliary.decoder.stages[-1]
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    for network in (vanilla, auxiliary):
        for name, stages in network.named_modules():
            if recomputed and name in ("encoder.stages", "decoder.stages"):
                for stage in stages:
                    stage.register_forward_pre_hook(lambda _module, args: (keep(args[0]), None)[1])
    parameters = [*vanilla.parameters(), *auxiliary.parameters()]
    images = torch.randn(2 * trainer.batch_size, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        outputs = [vanilla(images)]
        outputs.append(auxiliary(trainer.tap_v.take_skips() if share else images))
        if recomputed:
            outputs.append(last.forward.forward(seen[0]))
    weights = {p.untyped_storage().data_ptr() for p in parameters}
    real = sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in weights)
    bound = footprint.lower_bound(trainer)
    # attention's mask is of one byte an element, which the bound takes for four bytes
    assert 0.9 * real < bound.activations < 1.1 * real
    assert bound.weights == 12 * sum(p.numel() for p in parameters)


def test_leaves_no_trace_in_the_random_numbers(make_trainer: Any):
    trainer = make_trainer()
    trainer.initialize()
    before = torch.get_rng_state()
    footprint.lower_bound(trainer)
    assert torch.equal(before, torch.get_rng_state())


def test_most_recomputed_activations_are_not_counted(make_trainer: Any):
    trainer = make_trainer()
    trainer.initialize()
    plain = footprint.lower_bound(trainer)
    trainer.activation_checkpointing = True
    frugal = footprint.lower_bound(trainer)
    assert frugal.weights == plain.weights
    assert frugal.activations < 0.7 * plain.activations


def test_more_or_fewer_unlabelled_patches_are_counted(make_trainer: Any):
    trainer = make_trainer()
    trainer.initialize()
    once = footprint.lower_bound(trainer).activations
    for per_labeled, times in ((3, 2), (0.5, 0.75)):
        trainer.unlabeled_per_labeled = per_labeled
        assert footprint.lower_bound(trainer).activations == pytest.approx(times * once, rel=0.05)


def test_warning_names_need_device_and_ways_out():
    needed = footprint.LowerBound(GIB, 30 * GIB)
    assert footprint.describe(needed, None, "").endswith("needs at least 31.0 GiB.")
    assert footprint.describe(needed, 32 * GIB, "").endswith("at least 31.0 GiB, and this device has 32.0 GiB.")
    warning = footprint.describe(needed, 24 * GIB, "This is how.")
    assert warning.startswith("WARNING")
    assert "at least 31.0 GiB, and this device has 24.0 GiB" in warning
    assert warning.endswith("This is how.")
    small = footprint.describe(footprint.LowerBound(GIB // 100, GIB // 40), GIB // 2, "")
    assert small.endswith("at least 0.035 GiB, and this device has 0.5 GiB.")


def test_ways_out_are_not_what_the_trainer_does_already(make_trainer: Any):
    trainer = make_trainer()
    trainer.initialize()
    ways = footprint.ways_out(trainer)
    assert ways.index("activation_checkpointing = True") < ways.index("sharedEncoder") < ways.index("-gpu_memory_target")
    assert "unlabeled_per_labeled = 0.5); -tr" in ways
    for name in re.findall(r"-tr (\w+)", ways):
        assert hasattr(variants, name)
    trainer.unlabeled_per_labeled = 0.5
    assert "unlabeled_per_labeled" not in footprint.ways_out(trainer)
    trainer.activation_checkpointing, trainer.share_encoder, trainer.unlabeled_per_labeled = True, True, 2
    ways = footprint.ways_out(trainer)
    assert "activation_checkpointing" not in ways
    assert "sharedEncoder" not in ways
    assert "unlabeled_per_labeled = 1; plans" in ways
    trainer.share_encoder, trainer.clean_view = False, True
    assert "sharedEncoder" not in footprint.ways_out(trainer), "that variant has one view for both"


def test_training_warns_and_goes_on(make_trainer: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(footprint, "available_bytes", lambda _: 1000)
    trainer = make_trainer()
    trainer.on_train_start()
    trainer.dataloader_train.finish()
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text(encoding="utf-8")
    assert "WARNING: A training step of both networks needs at least" in log
