"""The schedule of the integration procedure; how long it is comes from the environment, which reaches every command."""

import os
from typing import Any

import torch

from nnunet_caml.trainer import nnUNetTrainerCAML


class nnUNetTrainerCAML_integration(nnUNetTrainerCAML):
    """Short. With Adam, because SGD at nnU-Net's rate has seen no class yet after so few iterations."""

    memory_per_class = 32
    rampup_start_fraction = 0.7
    rampup_fraction = 0.2

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["INTEGRATION_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["INTEGRATION_ITERATIONS"])
        if len(self.configuration_manager.patch_size) == 2:
            self.num_iterations_per_epoch *= 3  # a slice teaches less than a volume, and takes less time
        self.num_val_iterations_per_epoch = 1
        if "INTEGRATION_THREADS" in os.environ:  # nnU-Net takes all cores on a CPU; networks this small are slower with two
            torch.set_num_threads(int(os.environ["INTEGRATION_THREADS"]))
        torch.manual_seed(0)

    def configure_optimizers(self) -> Any:
        """Adam at a constant rate."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=3e-3)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
