"""Changes of the method that are on trial, as trainers that a study can name. What came out is in LOG.md."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor
from torch.nn.functional import interpolate

from nnunet_caml.consistency import at_least_float32, full_precision
from nnunet_caml.copy_paste import view_of_v
from nnunet_caml.correlation import Correlation, occ_loss, select_voxels, voxels_per_class
from nnunet_caml.learning import MutualLearning, voxel_features
from nnunet_caml.loading import labeled_loader
from nnunet_caml.networks import unwrap
from nnunet_caml.trainer import nnUNetTrainerCAML
from nnunet_caml.views import TwoViews

__all__ = [
    "nnUNetTrainerCAML_allResolutions",
    "nnUNetTrainerCAML_averaged",
    "nnUNetTrainerCAML_exchanged",
    "nnUNetTrainerCAML_headsFirst",
    "nnUNetTrainerCAML_mirrored",
    "nnUNetTrainerCAML_views",
]


class nnUNetTrainerCAML_views(nnUNetTrainerCAML):
    """V and A see the unlabelled patches with intensities augmented differently. Not for a shared encoder."""

    def get_dataloaders(self) -> tuple:
        """Unlabelled batches with twice the channels.

        Raises:
            NotImplementedError: Patches are loaded by worker processes, which have begun before this is asked.
        """
        if get_allowed_n_proc_DA():
            raise NotImplementedError("nnUNetTrainerCAML_views needs nnUNet_n_proc_DA=0 (run_study.py --workers 0).")
        train, validation = super().get_dataloaders()
        labeled_loader(train.unlabeled).transforms = TwoViews(labeled_loader(train.labeled).transforms, clean=False)
        return train, validation


class Changed:
    """A feature tap that gives what ``change`` makes of the features."""

    def __init__(self, tap: Any, change: Callable[[Any], Any]) -> None:
        self.take = lambda: change(tap.take())


class nnUNetTrainerCAML_changed(nnUNetTrainerCAML):
    """Networks see the patches through a change of their own that is undone in what they give, so the losses never know.

    The change of :meth:`involution` is its own inverse. Not for a shared encoder, not for several processes.
    """

    #: the networks that see the patches changed: "v", "a" or "va"
    changed: str = "a"

    def involution(self, images: Tensor, n: int) -> Callable[[Tensor], Tensor]:
        """A change drawn for one step and one network.

        Args:
            images: ``(2 n, C, *patch)``, labelled first.
            n: Number of labelled patches.

        Returns:
            A function of ``(2 n, C', *spatial)`` at any resolution of the network's outputs.
        """
        raise NotImplementedError

    def losses(self, images: Tensor, target: Any, cases: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """As the trainer's method of this name."""
        n = len(cases)
        if len(images) == n:
            return super().losses(images, target, cases)
        taps = {"tap_v": self.tap_v, "tap_a": self.tap_a}
        handles = []
        for network, name in ((self.network, "v"), (self.caml.auxiliary, "a")):
            if name not in self.changed:
                continue
            change = everywhere(self.involution(images, n))
            handles += [
                network.register_forward_pre_hook(lambda _module, args, change=change: (change(args[0]),)),
                network.register_forward_hook(lambda _module, _args, output, change=change: change(output), prepend=True),
            ]
            setattr(self, f"tap_{name}", Changed(taps[f"tap_{name}"], change))
        try:
            return super().losses(images, target, cases)
        finally:
            for name, tap in taps.items():
                setattr(self, name, tap)
            for handle in handles:
                handle.remove()


def everywhere(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """``change`` for a tensor, or for each of a list of them."""
    return lambda x: [change(y) for y in x] if isinstance(x, list | tuple) else change(x)


class nnUNetTrainerCAML_mirrored(nnUNetTrainerCAML_changed):
    """A sees the unlabelled patches mirrored, along axes drawn for each step."""

    def involution(self, images: Tensor, n: int) -> Callable[[Tensor], Tensor]:
        """Mirrors the unlabelled half."""
        axes = [axis + 2 for axis in self.inference_allowed_mirroring_axes or () if torch.rand(()) < 0.5]
        return lambda x: torch.cat((x[:n], x[n:].flip(axes)))


class nnUNetTrainerCAML_exchanged(nnUNetTrainerCAML_changed):
    """A labelled and an unlabelled patch exchange a box for V, or for both networks, each with boxes of its own.

    For V alone it is what became ``nnUNetTrainerCAML_copyPaste``.
    """

    changed = "v"

    def involution(self, images: Tensor, n: int) -> Callable[[Tensor], Tensor]:
        """Exchanges a box at a random place between sample ``i`` and ``n + i``."""
        return view_of_v(images.shape, n, self._get_deep_supervision_scales(), 2 / 3)


class nnUNetTrainerCAML_averaged(nnUNetTrainerCAML):
    """V and A learn the same labels, those of the mean of both networks' moving averages, each of which sees them mirrored.

    Not for a shared encoder, not for several processes; where a training is continued, the averages begin anew.
    """

    #: decay of the moving averages, once the training is long enough for it
    decay: float = 0.99
    #: the averages see the patches mirrored along axes drawn for each step
    mirrored: bool = True

    def initialize(self) -> None:
        """As the trainer's, and copies of both networks for their averages."""
        super().initialize()
        self._begin_averages()

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """As the trainer's; the averages begin with the networks that were loaded."""
        super().load_checkpoint(filename_or_checkpoint)
        self._begin_averages()

    def _begin_averages(self) -> None:
        networks = (self.network, self.caml.auxiliary)
        self._averages = [deepcopy(unwrap(network)).requires_grad_(False).eval() for network in networks]

    @torch.no_grad()
    def _labels(self, images: Tensor) -> Tensor:
        total: Any = 0.0
        for network in self._averages:
            axes = [axis + 2 for axis in self.inference_allowed_mirroring_axes or () if torch.rand(()) < 0.5 and self.mirrored]
            output = network(images.flip(axes))
            logits = at_least_float32(output[0] if isinstance(output, list | tuple) else output).flip(axes)
            total = total + (torch.sigmoid(logits) - 0.5 if self.labels.regions else torch.softmax(logits, 1))
        return self.labels.as_target(total)

    def losses(self, images: Tensor, target: Any, cases: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """As the trainer's method of this name."""
        if len(images) > len(cases):
            self._taught = self._labels(images[len(cases) :])
        return super().losses(images, target, cases)

    def mutual_consistency(self, logits_v: Tensor, logits_a: Tensor, n: int) -> Tensor:
        """Mean of both networks' supervised losses on the averages' labels."""
        whole: Any = getattr(self.loss, "loss", self.loss)
        return (whole(logits_v[n:], self._taught) + whole(logits_a[n:], self._taught)) / 2

    def update(self, total: Tensor) -> None:
        """A step of both networks, and the averages after it."""
        super().update(total)
        decay = min(self.decay, 1 - 1 / (self.iteration + 2))
        with torch.no_grad():
            for average, network in zip(self._averages, (self.network, self.caml.auxiliary), strict=True):
                pairs = zip(average.parameters(), unwrap(network).parameters(), strict=True)
                for a, b in pairs:
                    a.lerp_(b, 1 - decay)


class nnUNetTrainerCAML_allResolutions(nnUNetTrainerCAML):
    """V and A learn the other's labels at all resolutions of nnU-Net's deep supervision, with its weights, as true ones.

    Needs deep supervision. Not with copy-paste, and not where networks are compiled, which may give nothing to hooks.
    """

    def initialize(self) -> None:
        """As the trainer's."""
        super().initialize()
        self._outputs: dict[str, list[Tensor]] = {}
        for name, network in (("v", self.network), ("a", self.caml.auxiliary)):
            unwrap(network).register_forward_hook(lambda _module, _args, out, name=name: self._outputs.update({name: out}))

    def mutual_consistency(self, logits_v: Tensor, logits_a: Tensor, n: int) -> Tensor:
        """Mean of both networks' supervised losses, of all their outputs, each with the other's labels of full resolution."""
        outputs_v, outputs_a = (self._outputs.pop(name) for name in "va")
        losses = []
        for outputs, other in ((outputs_v, logits_a), (outputs_a, logits_v)):
            labels = self.labels.as_target(other[n:])
            # as nnU-Net's DownsampleSegForDSTransform makes true labels smaller
            smaller = [interpolate(labels.float(), o.shape[2:], mode="nearest-exact").to(labels.dtype) for o in outputs]
            losses.append(self.loss([o[n:] for o in outputs], smaller))
        return torch.stack(losses).mean()


class HeadsFirst(MutualLearning):
    """All voxels on which both networks agree go through the heads, as in the paper's order, and OCC's are chosen of them.

    So the heads' batch statistics are those of all these voxels, most of which are background.
    """

    def correlate(
        self, features_v: Tensor, features_a: Tensor, predicted_v: Tensor, predicted_a: Tensor, confidence: Tensor
    ) -> Correlation:
        """As the method that it replaces."""
        agree = (predicted_v == predicted_a).flatten()
        positions = agree.nonzero()[:, 0]
        bounds = self.num_filtered, self.max_filtered, self.max_filtered_share
        chosen = select_voxels(
            agree[positions],
            predicted_v.flatten()[positions],
            confidence.flatten()[positions],
            self.labels.num_classes,
            voxels_per_class(predicted_v.numel(), self.labels.num_classes, *bounds),
        )
        sample = self.memory.sample()
        with full_precision(features_v.device):
            embedded_v, embedded_a = (
                heads(voxel_features(features, positions), agree[positions])[chosen.positions]
                for heads, features in ((self.heads_v, features_v), (self.heads_a, features_a))
            )
            return occ_loss(
                embedded_v, embedded_a, chosen.valid, sample.embeddings, sample.valid, self.temperature, self.similarity
            )


class nnUNetTrainerCAML_headsFirst(nnUNetTrainerCAML):
    """See :class:`HeadsFirst`."""

    def initialize(self) -> None:
        """As the trainer's."""
        super().initialize()
        self.caml.__class__ = HeadsFirst
