"""A configuration that is small enough for a CPU, added to nnU-Net's plans as one would do it by hand."""

import json
from copy import deepcopy
from pathlib import Path

__all__ = ["CONFIGURATION", "FEATURES", "PATCH_SIZE", "add_configuration"]

CONFIGURATION = "3d_demo"
FEATURES = (8, 16, 32, 64)
PATCH_SIZE = (24, 24, 24)


def add_configuration(plans_file: Path) -> None:
    """Adds ``3d_demo``, which inherits from ``3d_fullres`` and so uses its preprocessed cases.

    ``architecture`` is given whole, because nnU-Net replaces inherited entries and does not merge them.

    Args:
        plans_file: ``nnUNetPlans.json``; it is written anew.
    """
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    architecture = deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
    stages = len(FEATURES)
    architecture["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=list(FEATURES),
        kernel_sizes=[[3, 3, 3]] * stages,
        strides=[[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1),
    )
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "3d_fullres",
        "batch_size": 2,
        "patch_size": list(PATCH_SIZE),
        "architecture": architecture,
    }
    plans_file.write_text(json.dumps(plans, indent=4) + "\n", encoding="utf-8")
