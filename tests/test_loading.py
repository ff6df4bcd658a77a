"""Loaders on their way to worker processes."""

import pickle
from types import SimpleNamespace

from nnunet_caml import loading
from nnunet_caml.loading import labeled_loader, like


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
