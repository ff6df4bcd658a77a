"""nnU-Net's trainer and ours with the demo's short schedule, the same for both.

nnU-Net finds them through the folder ``trainers/``, which re-exports them; see ``nnunet_caml/startup.py`` for the reason.
"""

import os
import random

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_caml.trainer import nnUNetTrainerCAML

__all__ = [
    "EPOCHS",
    "ITERATIONS_PER_EPOCH",
    "LONGER_EPOCHS",
    "nnUNetTrainerCAML_demo",
    "nnUNetTrainer_demo",
    "nnUNetTrainer_demoLonger",
]

EPOCHS = 16
ITERATIONS_PER_EPOCH = 40
#: environment variable with the epochs of the longer training, which depend on how long CAML took
LONGER_EPOCHS = "NNUNET_CAML_DEMO_EPOCHS"


class _Short:
    """A schedule that a laptop gets through in minutes. CAML's start and ramp-up are shares of it, as of any other."""

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)  # type: ignore[call-arg]
        self.num_epochs = EPOCHS
        self.num_iterations_per_epoch = ITERATIONS_PER_EPOCH
        self.num_val_iterations_per_epoch = 4
        # nnU-Net does not seed. Here both trainings start from the same weights, and a second demo resembles the first.
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Left out: with fold ``all`` it would segment the training cases. The demo has held-out cases for that."""


class nnUNetTrainer_demo(_Short, nnUNetTrainer):
    """Plain nnU-Net, short."""


class nnUNetTrainer_demoLonger(nnUNetTrainer_demo):
    """Plain nnU-Net with as many epochs as the environment says (:data:`LONGER_EPOCHS`), or as short as the others."""

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ.get(LONGER_EPOCHS, EPOCHS))


class nnUNetTrainerCAML_demo(_Short, nnUNetTrainerCAML):
    """CAML with its defaults, short."""
