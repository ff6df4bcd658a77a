"""Loaders on their way to worker processes."""

import json
import multiprocessing
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Workspace
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from test_unlabeled import dataset

from nnunet_caml import loading
from nnunet_caml.loading import UnlabeledCases, labeled_loader, like, unlabeled_loader
from nnunet_caml.preprocessing import preprocess


def test_workers_need_not_be_forked(make_trainer):
    """macOS and Windows start them anew, as Python 3.14 does everywhere: what they are given is pickled on the way."""
    trainer = make_trainer()
    trainer.on_train_start()
    _, validation = trainer.do_split()
    pair = trainer.dataloader_train
    for augmenter, first, around_foreground in ((pair.labeled, "tr_", True), (pair.unlabeled, "un_", False)):
        loader = labeled_loader(augmenter)
        assert any(loader.get_do_oversample(i) for i in range(loader.batch_size)) == around_foreground
        arrived = pickle.loads(pickle.dumps(loader))
        batch = next(arrived)
        assert batch["data"].shape == (loader.batch_size, 1, *trainer.configuration_manager.patch_size)
        assert all(case.startswith(first) for case in batch["keys"])
        assert not set(batch["keys"]) & set(validation)


def test_unlabelled_patches_are_no_twins_of_the_labelled_ones(monkeypatch):
    """Workers are forked with one state of torch's generator, and nnU-Net gives its own no seeds."""
    monkeypatch.setattr(loading, "NonDetMultiThreadedAugmenter", SimpleNamespace)
    augmenter = SimpleNamespace(num_processes=12, num_cached=6, pin_memory=False, wait_time=0.002)
    seeds = like(augmenter, None).seeds
    assert len(set(seeds)) == 12
    assert set(seeds).isdisjoint(like(augmenter, None).seeds)


def test_labelled_cases_of_unlike_weight(make_trainer):
    """Which nnU-Net's loader has an argument for: they say nothing of unlabelled cases."""
    trainer = make_trainer()
    trainer.on_train_start()
    loader = labeled_loader(trainer.dataloader_train.labeled)
    loader.sampling_probabilities = np.full(len(loader.indices), 1 / len(loader.indices))
    cases = labeled_loader(trainer.dataloader_train.unlabeled)._data
    assert len(cases.identifiers) != len(loader.indices)
    assert next(unlabeled_loader(loader, cases))["data"].shape[0] == loader.batch_size


def test_both_loaders_augment_alike(make_trainer):
    trainer = make_trainer()
    trainer.on_train_start()
    labeled, unlabeled = (labeled_loader(a) for a in (trainer.dataloader_train.labeled, trainer.dataloader_train.unlabeled))
    assert unlabeled.transforms is labeled.transforms


@pytest.mark.parametrize("cascade", [False, True])
def test_each_unlabelled_case_is_given_as_nnunet_gives_it(workspace: Workspace, cascade: bool):
    """Its own voxels, mask and prediction of the stage before, whichever other cases there are."""
    d = dataset(workspace)
    preprocess(d, 1)
    cases, folder = d.usable_cases(), workspace.root / "previous"
    folder.mkdir()
    for number, case in enumerate(cases, start=1):
        shape = nnUNetDatasetBlosc2(str(d.folder), [case]).load_case(case)[0].shape[1:]
        nnUNetDatasetBlosc2.save_seg(np.full(shape, number, np.uint8), str(folder / case))
    given = UnlabeledCases(nnUNetDatasetBlosc2(str(d.folder), cases, str(folder) if cascade else None))
    assert given.identifiers == cases
    for number, case in enumerate(cases, start=1):
        data, mask, previous, _ = given.load_case(case)
        expected = nnUNetDatasetBlosc2(str(d.folder), [case]).load_case(case)
        assert np.array_equal(data[:], expected[0][:])
        assert np.array_equal(mask[:], expected[1][:])
        assert np.all(previous[:] == number) if cascade else previous is None


def test_no_worker_outlives_the_training(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = make_trainer()
    trainer.on_train_start()
    assert len(multiprocessing.active_children()) >= 4, "of both loaders"
    trainer.logger.log("epoch_end_timestamps", 1.0, 0)
    trainer.on_train_end()
    assert not multiprocessing.active_children()


def test_what_nnunet_writes_down_of_its_loaders(make_trainer):
    """In debug.json, where people look up the augmentation."""
    trainer = make_trainer()
    trainer.on_train_start()
    written = json.loads((Path(trainer.output_folder) / "debug.json").read_text(encoding="utf-8"))
    for loader in ("dataloader_train", "dataloader_val"):
        assert f"{loader}.transform" in written
