"""Changes of the method that are on trial, as trainers that a study can name. What came out is in LOG.md."""

from typing import Any

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn

from nnunet_caml.loading import labeled_loader
from nnunet_caml.variants import nnUNetTrainerCAML_lateStart

__all__ = ["nnUNetTrainerCAML_crossPseudo", "nnUNetTrainerCAML_views"]


class TwoViews:
    """nnU-Net's augmentation of an image and its copy: the same geometry, but intensities changed channel by channel.

    Most of nnU-Net's transforms of intensity draw for each channel, so a copy in further channels is a second view.

    Args:
        transforms: nnU-Net's.
    """

    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, **data: Any) -> dict:
        data["image"] = data["image"].repeat(2, *[1] * (data["image"].ndim - 1))
        return self.transforms(**data)


class nnUNetTrainerCAML_views(nnUNetTrainerCAML_lateStart):
    """V and A see the unlabelled patches with intensities augmented differently. Not for cascades, not for masked images."""

    def get_dataloaders(self) -> tuple:
        """Unlabelled batches with twice the channels.

        Raises:
            NotImplementedError: Patches are loaded by worker processes, which have begun before this is asked.
        """
        if get_allowed_n_proc_DA():
            raise NotImplementedError("nnUNetTrainerCAML_views needs nnUNet_n_proc_DA=0 (run_study.py --workers 0).")
        train, validation = super().get_dataloaders()
        loader = labeled_loader(train.unlabeled)
        loader.transforms = TwoViews(loader.transforms)
        if not getattr(self, "_views_hooked", False):
            for module, view in ((self.network, 0), (self.caml.auxiliary, 1)):
                module.register_forward_pre_hook(self._choose(view))
            self._views_hooked = True
        return train, validation

    def _choose(self, view: int) -> Any:
        channels = self.num_input_channels

        def hook(_module: nn.Module, args: tuple) -> tuple | None:
            (images,) = args
            return (images[:, view * channels : (view + 1) * channels],) if images.shape[1] > channels else None

        return hook

    def train_step(self, batch: dict) -> dict:
        """Labelled patches are the same in both views."""
        return super().train_step({**batch, "data": torch.cat([batch["data"]] * 2, 1)})


class nnUNetTrainerCAML_crossPseudo(nnUNetTrainerCAML_lateStart):
    """In place of the mean squared difference: nnU-Net's loss of each network under the other's labels, on unlabelled patches.

    Cross pseudo supervision (Chen et al., CVPR 2021), with the ramp-up and the memory of CAML.
    """

    def losses(self, images: Tensor, target: Any, cases: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """As the trainer's method of this name."""
        n = len(cases)
        kept: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, _args: tuple, output: Any) -> None:
            kept[module] = (output if isinstance(output, Tensor) else output[0])[n:]

        handles = [module.register_forward_hook(keep) for module in (self.network, self.caml.auxiliary)]
        weight, self.lambda_c = self.lambda_c, 0.0
        try:
            losses, agreement = super().losses(images, target, cases)
        finally:
            self.lambda_c = weight
            for handle in handles:
                handle.remove()
        loss = self.loss.loss if hasattr(self.loss, "weight_factors") else self.loss
        v, a = kept[self.network], kept[self.caml.auxiliary]
        labels_v, labels_a = (x.detach().argmax(1, keepdim=True) for x in (v, a))
        # nnU-Net's loss is negative; its zero is where nothing is right
        losses["consistency"] = (loss(v, labels_a) + loss(a, labels_v)) / 2
        return losses, agreement
