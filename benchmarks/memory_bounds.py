#!/usr/bin/env python
"""Memory that a training step needs at least, by calculation: nothing is run, any machine will do.

Prints a Markdown table for some plans of nnU-Net and the ways to spare memory. A training prints the same figure for its own
plans before its first step. What it leaves out is told in nnunet_caml/footprint.py.
"""

import argparse
import contextlib
import io
import os
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from fixed_plans import DATASET, SIZES, plans, prepare

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
WAYS: dict[str, dict[str, Any]] = {
    "two networks": {},
    "shared encoder": {"share_encoder": True},
    "recomputed activations": {"activation_checkpointing": True},
    "both": {"share_encoder": True, "activation_checkpointing": True},
}


def residual(content: dict[str, Any]) -> dict[str, Any]:
    """The same plans with the residual encoder of nnU-Net's ResEnc M."""
    content = deepcopy(content)
    architecture = content["configurations"]["cost"]["architecture"]
    arguments = architecture["arch_kwargs"]
    del arguments["n_conv_per_stage"]
    stages = arguments["n_stages"]
    arguments.update(n_blocks_per_stage=[1, 3, 4, 6, 6, 6][:stages], n_conv_per_stage_decoder=[1] * (stages - 1))
    architecture["network_class_name"] = RESIDUAL
    return content


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = {
        "nnU-Net's default, 128 x 128 x 128, 32 to 320 channels, batch 2": plans(SIZES["nnunet"]),
        "the same with ResEnc M": residual(plans(SIZES["nnunet"])),
        "the paper's, 112 x 112 x 80, 16 to 256 channels, batch 2": plans(SIZES["paper"]),
    }
    print("| plans | " + " | ".join(WAYS) + " |\n" + "|---" * (len(WAYS) + 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name, content in rows.items():
            cells = [f"{gib(content, attributes):.1f}" for attributes in WAYS.values()]
            print(f"| {name} | " + " | ".join(cells) + " |")
    print("\nGiB, mixed precision on CUDA.")


def gib(content: dict[str, Any], attributes: dict[str, Any]) -> float:
    """Lower bound for a step of CAML with these plans and attributes."""
    os.environ["nnUNet_compile"] = "F"
    from nnunet_caml.footprint import lower_bound
    from nnunet_caml.trainer import nnUNetTrainerCAML

    with contextlib.redirect_stdout(io.StringIO()):
        kind = type("nnUNetTrainerCAML", (nnUNetTrainerCAML,), attributes)
        trainer: Any = kind(deepcopy(content), "cost", "all", DATASET, torch.device("cpu"))
    trainer.device = torch.device("cuda")
    trainer.num_input_channels, trainer.batch_size = 1, trainer.configuration_manager.batch_size
    return sum(lower_bound(trainer)) / 2**30


if __name__ == "__main__":
    main()
