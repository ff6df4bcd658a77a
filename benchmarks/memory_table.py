#!/usr/bin/env python
"""Memory of a training step for the plans that nnU-Net makes for the Left Atrium challenge, with the ways to spare memory.

On a GPU it is measured: the peak of three steps, in a process of its own. Elsewhere it is what a step needs at least, by
calculation, as a training tells before its first step; what that leaves out is told in nnunet_caml/footprint.py.
Prints a Markdown table.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from fixed_plans import DATASET, SIZES, plans, prepare

WAYS: dict[str, dict[str, Any]] = {
    "two networks": {},
    "1 unlabelled for 2 labelled": {"unlabeled_per_labeled": 0.5},
    "shared encoder": {"share_encoder": True},
    "recomputed activations": {"activation_checkpointing": True},
    "both": {"share_encoder": True, "activation_checkpointing": True},
}
#: row: planner, -gpu_memory_target in GB (None: the planner's own)
PLANNERS: dict[str, tuple[str, int | None]] = {
    "nnU-Net's default (made for 8 GB)": ("ExperimentPlanner", None),
    "`-gpu_memory_target 4`": ("ExperimentPlanner", 4),
    "`-gpu_memory_target 16`": ("ExperimentPlanner", 16),
    "`-gpu_memory_target 24`": ("ExperimentPlanner", 24),
    "`nnUNetPlannerResEncM` (9 GB)": ("nnUNetPlannerResEncM", None),
    "`nnUNetPlannerResEncL` (24 GB)": ("nnUNetPlannerResEncL", None),
    "`nnUNetPlannerResEncXL` (40 GB)": ("nnUNetPlannerResEncXL", None),
}
PAPER = "the paper's"
#: of the challenge's 100 scans: voxels and mm
SHAPE, SPACING, CASES = (88, 576, 576), (0.625, 0.625, 0.625), 100


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*PLANNERS, PAPER], default=[*PLANNERS, PAPER], metavar="ROW")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    measured = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        if options.one:
            row, way = json.loads(options.one)
            take_steps(make_plans(row, Path(folder)), WAYS[way], "cuda")
            print(torch.cuda.max_memory_allocated())
            return
        print("| plans | patch, batch | " + " | ".join(WAYS) + " |\n" + "|---" * (len(WAYS) + 2) + "|")
        for row in options.rows:
            content = make_plans(row, Path(folder))
            configuration = content["configurations"]["cost"]
            size = " x ".join(map(str, configuration["patch_size"])) + f", {configuration['batch_size']}"
            cells = [cell(row, way, content, measured) for way in WAYS]
            print(f"| {row} | {size} | " + " | ".join(cells) + " |", flush=True)
    print(
        "\nGiB, mixed precision, not compiled, "
        + (f"measured on {torch.cuda.get_device_name()}." if measured else "by calculation.")
    )


def make_plans(row: str, folder: Path) -> dict[str, Any]:
    """Plans of a row, with the one configuration ``cost``."""
    if row == PAPER:
        return plans(SIZES["paper"])
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments

    raw, preprocessed = (folder / name / "Dataset002_Atrium" for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    if not raw.exists():
        write_dataset(raw, preprocessed)
    planner, target = PLANNERS[row]
    with contextlib.redirect_stdout(io.StringIO()):
        plan_experiments([2], planner, target, "DefaultPreprocessor", None, "Wanted")
    content = json.loads((preprocessed / "Wanted.json").read_text(encoding="utf-8"))
    content["configurations"] = {"cost": content["configurations"]["3d_fullres"] | {"data_identifier": "cost"}}
    content["dataset_name"] = "Dataset001_Cost"
    return {**content, "continue_training": False}


def write_dataset(raw: Path, preprocessed: Path) -> None:
    """What nnU-Net's planner looks at: a fingerprint, and one image to find the reader with."""
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    preprocessed.mkdir(parents=True)
    image = sitk.GetImageFromArray(np.zeros((4, 4, 4), np.uint8))
    sitk.WriteImage(image, str(raw / "imagesTr" / "a_0000.nii.gz"))
    sitk.WriteImage(image, str(raw / "labelsTr" / "a.nii.gz"))
    (raw / "dataset.json").write_text(json.dumps({**DATASET, "numTraining": 1}), encoding="utf-8")
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [SPACING] * CASES,
        "shapes_after_crop": [SHAPE] * CASES,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint), encoding="utf-8")


def cell(row: str, way: str, content: dict[str, Any], measured: bool) -> str:
    """GiB, or why there are none."""
    if not measured:
        return f"{lower_bound_bytes(content, WAYS[way]) / 2**30:.1f}"
    command = [sys.executable, __file__, "--one", json.dumps([row, way])]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if "OutOfMemoryError" in done.stderr:
        return "more than there is"
    if done.returncode:  # near the limit, libraries find other words
        print(f"{row}, {way}: {done.stderr[-2000:]}", file=sys.stderr)
        return "failed"
    return f"{int(done.stdout.split()[-1]) / 2**30:.1f}"


def make_trainer(content: dict[str, Any], attributes: dict[str, Any], device: str) -> Any:
    """A trainer of CAML with these plans and attributes."""
    os.environ["nnUNet_compile"] = "F"
    from nnunet_caml.trainer import nnUNetTrainerCAML

    with contextlib.redirect_stdout(io.StringIO()):
        kind = type("nnUNetTrainerCAML", (nnUNetTrainerCAML,), attributes)
        return kind(deepcopy(content), "cost", "all", DATASET, torch.device(device))


def lower_bound_bytes(content: dict[str, Any], attributes: dict[str, Any]) -> int:
    """What a step needs at least on a GPU."""
    from nnunet_caml.footprint import lower_bound

    trainer = make_trainer(content, attributes, "cpu")
    trainer.device = torch.device("cuda")
    trainer.num_input_channels, trainer.batch_size = 1, trainer.configuration_manager.batch_size
    return sum(lower_bound(trainer))


def take_steps(content: dict[str, Any], attributes: dict[str, Any], device: str) -> None:
    """A few steps of CAML after the ramp-up, on noise with one bright half; on a GPU, the peak is that of the last three."""
    torch.backends.cudnn.benchmark = True  # as nnUNetv2_train has it
    trainer = make_trainer(content, attributes, device)
    trainer.initialize()
    trainer.network.train()
    trainer.caml.train()
    trainer.iteration = 10**9  # after the ramp-up
    patch, n = trainer.configuration_manager.patch_size, trainer.batch_size
    target = torch.zeros(n, 1, *patch)
    target[..., : patch[-1] // 2] = 1
    scales = trainer._get_deep_supervision_scales()
    targets = [nearest(target, [round(m * f) for m, f in zip(patch, scale, strict=True)]) for scale in scales]
    unlabeled = (torch.randn(n, 1, *patch) + target)[: trainer.unlabeled_per_batch(n)]
    batch = {"data": torch.randn(n, 1, *patch) + target, "unlabeled": unlabeled, "target": targets}
    batch["keys"] = [list(trainer.caml.memory.case_index)[i % 2] for i in range(n)]
    for number in range(5):
        if device == "cuda" and number == 2:  # cuDNN tries ways that need more than the one which it takes
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        trainer.train_step(batch)


def nearest(target: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Labels at another resolution."""
    return torch.nn.functional.interpolate(target, size=size, mode="nearest")


if __name__ == "__main__":
    main()
