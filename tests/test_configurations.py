"""Configurations and label kinds of nnU-Net beyond the plain 3-D one: an epoch of each, through the real preprocessing."""

import json
from pathlib import Path

import pytest
from conftest import Workspace
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

PLAIN = {"background": 0, "front": 1, "back": 2}
REGIONS = {"background": 0, "both": [1, 2], "back": 2}


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def small_configuration(workspace: Workspace, parent: str, residual: bool) -> None:
    """Adds the configuration ``small``: ``parent`` with few features, and with residual encoders if asked for."""
    file = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    architecture = json.loads(json.dumps(plans["configurations"][parent]["architecture"]))
    kwargs = architecture["arch_kwargs"]
    kwargs["features_per_stage"] = [4] * kwargs["n_stages"]
    if residual:
        architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        kwargs["n_blocks_per_stage"] = [1] * kwargs["n_stages"]
        del kwargs["n_conv_per_stage"]
    plans["configurations"]["small"] = {"inherits_from": parent, "architecture": architecture, "batch_size": 3}
    file.write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("parent", "labels", "residual"),
    [
        ("2d", PLAIN, False),
        ("3d_fullres", PLAIN, True),
        ("3d_fullres", REGIONS, False),
        ("2d", {"background": 0, "front": 1, "ignore": 2}, True),
        ("3d_fullres", {"background": 0, "all": [1], "front": 1, "ignore": 2} | {"all": [1, 1]}, False),
    ],
    ids=["2d", "residual", "regions", "2d-residual-ignore", "regions-ignore"],
)
def test_trains(workspace: Workspace, make_trainer, parent: str, labels: dict, residual: bool):
    for folder in (workspace.raw, workspace.preprocessed):
        order = {"regions_class_order": [1, 2]} if any(isinstance(v, list) for v in labels.values()) else {}
        edit(folder / "dataset.json", labels=labels, **order)
    small_configuration(workspace, parent, residual)
    preprocessor = DefaultPreprocessor(verbose=False)
    preprocessor.run(101, "small", "nnUNetPlans", 1)
    trainer = make_trainer(configuration="small", fold="all")
    trainer.memory_per_class = 16
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 3, 1
    trainer.run_training()
    assert trainer.caml.memory.num_classes == trainer.label_manager.num_segmentation_heads + trainer.label_manager.has_regions
    for key in ("supervised", "consistency"):
        assert 0 < trainer.logger.get_value(f"caml_{key}", step=-1) < 100
    assert trainer.caml.memory.counts.sum() > 0
