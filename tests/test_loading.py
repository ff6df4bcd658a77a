"""Loaders on their way to worker processes."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Workspace
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from test_unlabeled import dataset

from nnunet_caml import loading
from nnunet_caml.errors import WorkerError
from nnunet_caml.loading import PairedBatches, UnlabeledCases, labeled_loader, like, unlabeled_loader
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
    assert next(unlabeled_loader(loader, cases, 3))["data"].shape[0] == 3


def test_both_loaders_augment_alike(make_trainer):
    trainer = make_trainer()
    trainer.on_train_start()
    labeled, unlabeled = (labeled_loader(a) for a in (trainer.dataloader_train.labeled, trainer.dataloader_train.unlabeled))
    assert unlabeled.transforms.transforms is labeled.transforms


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
    end = time.monotonic() + 60  # older batchgenerators tell them to end, and do not wait until they have
    while multiprocessing.active_children():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_no_worker_outlives_a_training_that_is_killed(workspace: Workspace, method: str):
    """As by the kernel where memory runs out; nnU-Net's own do. With "forkserver", Python's default since 3.14, too."""
    script = workspace.root / "train.py"
    script.write_text(
        "import json, multiprocessing, os, signal, torch\n"
        "from nnunetv2.run.run_training import get_trainer_from_args\n"
        "if __name__ == '__main__':\n"
        f"    multiprocessing.set_start_method('{method}')\n"
        "    arguments = '101', '3d_tiny', 0, 'nnUNetTrainerCAMLShort', 'nnUNetPlans', False, torch.device('cpu')\n"
        "    trainer = get_trainer_from_args(*arguments)\n"
        "    trainer.rampup_start_fraction = 0.0\n"
        "    trainer.on_train_start()\n"
        "    assert all('unlabeled' in next(trainer.dataloader_train) for _ in range(20))\n"
        "    loaders = trainer.dataloader_train.unlabeled, trainer.dataloader_train.labeled, trainer.dataloader_val\n"
        "    open('workers.json', 'w').write(json.dumps([[p.pid for p in loader._processes] for loader in loaders]))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "nnUNet_n_proc_DA": "2"}
    # not piped: nnU-Net's workers would hold it open
    subprocess.run([sys.executable, str(script)], env=environment, stdout=subprocess.DEVNULL, cwd=workspace.root, check=False)
    ours, *others = json.loads((workspace.root / "workers.json").read_text(encoding="utf-8"))
    try:
        assert len(ours) == 2
        end = time.monotonic() + 60
        while any(is_running(pid) for pid in ours):
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        for pid in (pid for pids in (ours, *others) for pid in pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_ends_is_told_whenever_it_does(make_trainer, monkeypatch):
    """With the way out, also where patches are drawn all the time."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = make_trainer()
    trainer.rampup_start_fraction = 0.0
    trainer.on_train_start()
    try:
        assert trainer.dataloader_train.wanted()
        assert "unlabeled" in next(trainer.dataloader_train)
        for process in trainer.dataloader_train.unlabeled._processes:
            process.kill()
        with pytest.raises(WorkerError, match=r"fewer of them \(nnUNet_n_proc_DA\) need less\. Then continue with --c"):
            list(islice(trainer.dataloader_train, 1000))
    finally:
        trainer.dataloader_train.finish()
        trainer.dataloader_val._finish()


def test_what_nnunet_writes_down_of_its_loaders(make_trainer):
    """In debug.json, where people look up the augmentation."""
    trainer = make_trainer()
    trainer.on_train_start()
    written = json.loads((Path(trainer.output_folder) / "debug.json").read_text(encoding="utf-8"))
    for loader in ("dataloader_train", "dataloader_val"):
        assert f"{loader}.transform" in written


def test_an_ignore_label_is_of_the_labelled_cases(make_trainer):
    """With one, nnU-Net's loader looks for annotated voxels, which an unlabelled case does not have."""
    trainer = make_trainer()
    trainer.on_train_start()
    loader = labeled_loader(trainer.dataloader_train.labeled)
    cases = labeled_loader(trainer.dataloader_train.unlabeled)._data
    loader.has_ignore = True
    assert next(unlabeled_loader(loader, cases, 3))["data"].shape[0] == 3


def test_waiting_for_data_is_added_up(monkeypatch):
    times = iter([0.0, 1.0, 5.0, 7.0])
    monkeypatch.setattr(loading, "perf_counter", lambda: next(times))
    batches = PairedBatches(iter([{}, {}]), iter([{"data": 1}, {"data": 2}]), lambda: True)
    next(batches), next(batches)
    assert batches.waited_s == 3.0
