"""Unlabelled batches from nnU-Net's own loader, augmentation and worker processes.

The unlabelled loader is a copy of the labelled one, with other cases: same patch sizes and transforms, which
:mod:`nnunet_caml.views` adapts. Patches are drawn anywhere in the case, because nobody knows where its foreground is.
"""

import copy
import os
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from torch import Tensor

from nnunet_caml.errors import WorkerError
from nnunet_caml.views import ImageAlone, TwoViews, image_needs_segmentation
from nnunet_caml.workers import end_with


class UnlabeledCases:
    """Unlabelled cases as nnU-Net's loader wants a data set.

    Nothing is held in memory but the identifiers; ``load_case`` opens memory-mapped files.

    Args:
        dataset: nnU-Net's data set of the preprocessed unlabelled folder.
    """

    def __init__(self, dataset: nnUNetBaseDataset) -> None:
        self.dataset = dataset
        self.identifiers = dataset.identifiers

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Data, nonzero mask (-1 outside, 0 inside), prediction of the previous stage or ``None``, properties."""
        data, mask, previous, properties = self.dataset.load_case(identifier)
        # The loader looks this up before it knows whether it needs it.
        return data, mask, previous, {**properties, "class_locations": {}}


def labeled_loader(augmenter: Any) -> nnUNetDataLoader:
    """The loader inside what ``nnUNetTrainer.get_dataloaders`` returns."""
    return augmenter.data_loader if isinstance(augmenter, SingleThreadedAugmenter) else augmenter.generator


def unlabeled_loader(
    labeled: nnUNetDataLoader, cases: UnlabeledCases, patches: int, clean_view: bool = False
) -> nnUNetDataLoader:
    """A loader like ``labeled`` that draws from ``cases``, ``patches`` of them a batch.

    With ``clean_view`` the patches have twice the channels, see :class:`nnunet_caml.views.TwoViews`.
    """
    loader = copy.copy(labeled)
    if clean_view:
        loader.transforms = TwoViews(labeled.transforms)
    if not image_needs_segmentation(labeled.transforms):
        loader.transforms = ImageAlone(loader.transforms)
    loader.batch_size = patches
    loader._data = cases
    loader.indices = cases.identifiers
    # Where a trainer has some, they are of the labelled cases.
    loader.sampling_probabilities = None
    loader.oversample_foreground_percent = 0.0
    # Bound methods of the original would look at the original's settings.
    loader.get_do_oversample = loader._oversample_last_XX_percent
    # With an ignore label nnU-Net draws patches around annotated voxels. There are none here.
    loader.has_ignore = False
    loader.was_initialized = False
    # the first thing that a worker process does with it
    loader.set_thread_id = partial(_begin_worker, loader, os.getpid())
    return loader


def _begin_worker(loader: nnUNetDataLoader, parent: int, number: int) -> None:
    """Nobody would tell a worker if the training were killed, and it would hold its memory for ever."""
    if os.getpid() != parent:
        end_with(parent)
    type(loader).set_thread_id(loader, number)


def like(augmenter: Any, loader: nnUNetDataLoader) -> Any:
    """Runs ``loader`` as ``augmenter`` runs its own: in this process, or in as many worker processes."""
    if isinstance(augmenter, SingleThreadedAugmenter):
        return SingleThreadedAugmenter(loader, None)
    return NonDetMultiThreadedAugmenter(
        data_loader=loader,
        transform=None,
        num_processes=augmenter.num_processes,
        num_cached=augmenter.num_cached,
        # Workers are forked with this process's state of torch's generator, from which some augmentation draws. nnU-Net's have
        # it too, so without seeds of their own these would give each labelled patch an unlabelled twin.
        seeds=[int(s) for s in np.random.randint(2**31, size=augmenter.num_processes)],
        pin_memory=augmenter.pin_memory,
        wait_time=augmenter.wait_time,
    )


def require_workers(augmenter: Any) -> None:
    """Raises :class:`nnunet_caml.errors.WorkerError` if a worker process of an unlabelled loader has ended.

    Nothing may be asked of it for hundreds of epochs, so that nobody would notice.
    """
    if not isinstance(augmenter, NonDetMultiThreadedAugmenter):
        return
    has_noticed = augmenter.abort_event is not None and augmenter.abort_event.is_set()
    if has_noticed or not augmenter.initialized:  # which it is no more when it has said so itself
        augmenter._finish()
        raise WorkerError(
            'A worker process that loads unlabelled patches has ended. If it said why, that stands above, behind "Exception in '
            'background worker"; else it was most likely stopped because memory ran out, and fewer of them '
            "(nnUNet_n_proc_DA) need less. Then continue with --c."
        )


class PairedBatches:
    """Labelled batches that carry an unlabelled one under the key ``unlabeled``, while there is use for it.

    Args:
        labeled: Gives batches.
        unlabeled: Alike.
        wanted: Whether the next step uses unlabelled patches.

    Attributes:
        waited_s: Seconds spent waiting for either loader since it was last set to 0.
    """

    def __init__(self, labeled: Any, unlabeled: Any, wanted: Callable[[], bool]) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.wanted = wanted
        self.waited_s = 0.0

    def __iter__(self) -> "PairedBatches":
        return self

    def __next__(self) -> dict:
        start = perf_counter()
        batch = dict(next(self.labeled))
        require_workers(self.unlabeled)
        if self.wanted():
            try:
                batch["unlabeled"] = next(self.unlabeled)["data"]
            except RuntimeError:  # as of batchgenerators, if a worker ends meanwhile
                require_workers(self.unlabeled)
                raise
        self.waited_s += perf_counter() - start
        return batch

    def __getattr__(self, name: str) -> Any:
        """What nnU-Net looks up in a loader, to write it down in ``debug.json``, is that of the labelled one."""
        if name == "labeled":  # not there yet, as while this is unpickled
            raise AttributeError(name)
        return getattr(self.labeled, name)

    def finish(self) -> None:
        """Stops worker processes."""
        for augmenter in (self.labeled, self.unlabeled):
            if isinstance(augmenter, NonDetMultiThreadedAugmenter):
                augmenter._finish()


def on_device(batch: dict, device: torch.device) -> tuple[Tensor, Any]:
    """Images and target of a batch of :class:`PairedBatches` on the device.

    Returns:
        Images ``(B_l + B_u, C, *patch)``, labelled first; with twice the channels, V's view before A's, if the unlabelled ones
        have two, which are the same for labelled ones. And the target, a list with deep supervision.
    """
    parts = [batch[k].to(device, non_blocking=True) for k in ("data", "unlabeled") if k in batch]
    parts[0] = torch.cat([parts[0]] * (parts[-1].shape[1] // parts[0].shape[1]), 1)
    target = batch["target"]
    if isinstance(target, list):
        return torch.cat(parts), [t.to(device, non_blocking=True) for t in target]
    return torch.cat(parts), target.to(device, non_blocking=True)
