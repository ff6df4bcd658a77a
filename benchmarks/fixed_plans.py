"""Plans of a wanted size without a data set, for benchmarks of cost."""

import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["DATASET", "SIZES", "plans", "prepare"]

SIZES: dict[str, dict[str, Any]] = {
    # patch, features, labelled batch
    "hippocampus": {"patch": [40, 56, 40], "features": [32, 64, 128, 256]},
    "hippocampus-small": {"patch": [40, 56, 40], "features": [8, 16, 32, 64]},
    "paper": {"patch": [112, 112, 80], "features": [16, 32, 64, 128, 256]},
    "nnunet": {"patch": [128, 128, 128], "features": [32, 64, 128, 256, 320, 320]},
}


def prepare(folder: Path) -> None:
    """A data set of file names in nnU-Net's folders, and plans of the wanted size; batches are made up later.

    On a GPU convolutions are chosen by trial, as ``nnUNetv2_train`` has it; nothing is compiled.
    """
    torch.backends.cudnn.benchmark = True
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    os.environ |= {name: str(folder / name) for name in names} | {"nnUNet_compile": "F", "nnUNet_wandb_enabled": "0"}
    data = folder / "nnUNet_preprocessed" / "Dataset001_Cost"
    (data / "cost").mkdir(parents=True)
    for case in ("a", "b"):
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (data / "cost" / f"{case}{ending}").touch()


def plans(size: dict[str, Any]) -> dict[str, Any]:
    """Plans with one configuration."""
    stages, dim = len(size["features"]), len(size["patch"])
    arch = {
        "n_stages": stages,
        "features_per_stage": size["features"],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3] * dim] * stages,
        "strides": [[1] * dim] + [[2] * dim] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "cost",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": size["patch"],
        "spacing": [1.0] * dim,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arch,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset001_Cost",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"cost": configuration},
        "continue_training": False,
    }


DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "numTraining": 2, "file_ending": ".nii.gz"}
