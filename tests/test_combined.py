"""CAML together with nnU-Net's own variants of its trainer, as a user combines them: a class of two bases."""

import importlib
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer import variants
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_caml.networks import unwrap

#: one of each kind; the others, which differ from these in a number or are made of two, are slow tests
FAST = {
    "nnUNetTrainerDA5",
    "nnUNetTrainerNoMirroring",
    "nnUNetTrainerCosAnneal",
    "nnUNetTrainer_warmup",
    "nnUNetTrainerAdam",
    "nnUNetTrainerDiceTopK10Loss",
    "nnUNetTrainerBN",
    "nnUNetTrainerNoDeepSupervision",
    "nnUNetTrainer_probabilisticOversampling",
}
#: with ours in front, so that what nnU-Net's sets on the instance is there when ours reads class attributes
COMBINED = """
from {module} import {name}
from nnunet_caml.trainer import nnUNetTrainerCAML


class nnUNetTrainerCAML_combined(nnUNetTrainerCAML, {name}):
    epochs = 2
    num_iterations_per_epoch = 2
    num_val_iterations_per_epoch = 1
    rampup_start_fraction = 0.5
    rampup_fraction = 0.0
"""


def nnunets_variants() -> Iterator:
    """A parameter for each that nnU-Net has, but those for measuring speed and those that need a package which we do not."""
    for module in pkgutil.walk_packages(variants.__path__, f"{variants.__name__}."):
        for name, kind in vars(importlib.import_module(module.name)).items():
            if not (isinstance(kind, type) and issubclass(kind, nnUNetTrainer) and kind.__module__ == module.name):
                continue
            if "Benchmark" not in name and "Adan" not in name:
                yield pytest.param(kind, id=name, marks=[] if name in FAST else pytest.mark.slow)


def kinds_of_layers(network: nn.Module) -> set[type]:
    return {type(module) for module in unwrap(network).modules()}


@pytest.mark.parametrize("variant", nnunets_variants())
def test_a_variant_trains_both_networks(variant, workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An epoch of labelled patches and one with unlabelled ones; and what the variant changes holds for A as well."""
    (folder := tmp_path / "mine").mkdir()
    (folder / "combined.py").write_text(COMBINED.format(module=variant.__module__, name=variant.__name__), encoding="utf-8")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(folder), os.environ["nnUNet_extTrainer"]]))
    trainer, plain = (
        get_trainer_from_args("101", "3d_tiny", "all", name, "nnUNetPlans", False, torch.device("cpu"))
        for name in ("nnUNetTrainerCAML_combined", variant.__name__)
    )
    torch.set_num_threads(1)
    trainer.run_training()

    plain.initialize()
    layers = kinds_of_layers(plain.network)
    assert layers == kinds_of_layers(trainer.network)
    assert layers - {nn.ConvTranspose3d} <= kinds_of_layers(trainer.caml.auxiliary)  # A's decoder interpolates
    assert type(trainer.optimizer) is type(trainer.auxiliary_optimizer) is type(plain.optimizer)
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.auxiliary_optimizer.param_groups[0]["lr"]
    assert type(trainer.lr_scheduler) is type(plain.lr_scheduler)
    assert type(trainer.loss) is type(plain.loss)
    labeled, unlabeled = (
        augmenter.data_loader for augmenter in (trainer.dataloader_train.labeled, trainer.dataloader_train.unlabeled)
    )
    assert unlabeled.transforms.transforms is labeled.transforms
    of_plain = plain.get_dataloaders()[0].data_loader
    assert [type(t) for t in labeled.transforms.transforms] == [type(t) for t in of_plain.transforms.transforms]
    assert trainer.inference_allowed_mirroring_axes == plain.inference_allowed_mirroring_axes
    logged = trainer.logger.local_logger.my_fantastic_logging
    for key in ("train_losses", "val_losses", "caml_supervised_a", "caml_consistency"):
        assert np.isfinite(logged[key]).all()
        assert len(logged[key]) == 2
    assert logged["caml_consistency"][0] == 0 != logged["caml_consistency"][1]
