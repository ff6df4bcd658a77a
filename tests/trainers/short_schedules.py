"""Trainers with few iterations, in a folder of the user's own (`nnUNet_extTrainer`), as anyone would write them."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_caml.trainer import nnUNetTrainerCAML
from nnunet_caml.variants import nnUNetTrainerCAML_paper, nnUNetTrainerCAML_sharedEncoder


class Short:
    """Two epochs of four iterations."""

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)  # type: ignore[call-arg]
        torch.set_num_threads(1)  # nnU-Net takes all cores on a CPU; networks this small are slower with two
        self.num_epochs = 2
        self.num_iterations_per_epoch = 4
        self.num_val_iterations_per_epoch = 1
        self.save_every = 1


class nnUNetTrainerShort(Short, nnUNetTrainer):
    pass


class nnUNetTrainerCAMLShort(Short, nnUNetTrainerCAML):
    """All losses weigh something from the first step on."""

    rampup_start_fraction = 0.0


class nnUNetTrainerCAMLShort_paper(Short, nnUNetTrainerCAML_paper):
    pass


class nnUNetTrainerCAMLShort_sharedEncoder(Short, nnUNetTrainerCAML_sharedEncoder):
    rampup_start_fraction = 0.0


class nnUNetTrainerCAMLOneEpoch(nnUNetTrainerCAML):
    """One epoch of three iterations, nnU-Net's own settings as class attributes too."""

    memory_per_class = 16
    epochs = 1
    num_iterations_per_epoch = 3
    num_val_iterations_per_epoch = 1

    def initialize(self) -> None:
        torch.set_num_threads(1)
        super().initialize()
