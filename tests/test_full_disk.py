"""A disk that is full, where nothing but a few bytes can be written any more: what is said, and what is kept."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import Workspace
from test_checkpoints import logger_after
from test_unlabeled import dataset

from nnunet_caml.checkpoints import companion, save
from nnunet_caml.errors import StorageError, is_full
from nnunet_caml.preprocessing import preprocess


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more to a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("size", [5_000, 50_000])
def test_a_checkpoint_that_cannot_be_written(tmp_path: Path, size: int):
    """Whichever of the pair it is; torch says "unexpected pos"."""
    checkpoint = tmp_path / "checkpoint_latest.pth"

    def save_stock(name: str) -> None:
        torch.save({"network_weights": torch.ones(5_000)}, name)

    save(checkpoint, save_stock, {"auxiliary": torch.ones(50_000)}, logger_after(tmp_path, 1))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with (
        files_of_at_most(size),
        pytest.raises(StorageError, match=r"not enough space left in .* to save checkpoint_latest\.pth .* with --c\.$"),
    ):
        save(checkpoint, save_stock, {"auxiliary": torch.ones(50_000)}, logger_after(tmp_path, 2))
    # nothing half-written takes the space that is needed to go on
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert companion(checkpoint, 1).name in before


def test_another_fault_of_saving_is_shown_as_it_is(tmp_path: Path):
    def save_stock(name: str) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        save(tmp_path / "checkpoint_latest.pth", save_stock, {}, logger_after(tmp_path, 1))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_to_is_not_full(tmp_path: Path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert not is_full(tmp_path, RuntimeError("no number"))


def test_results_that_cannot_be_written(make_trainer, tmp_path: Path, monkeypatch):
    """Told when a training begins, whether nnU-Net would notice then or not before its first file."""
    folder = tmp_path / "results"
    monkeypatch.setenv("nnUNet_results", str(folder))
    with (
        files_of_at_most(1_000_000),
        pytest.raises(StorageError, match=rf"^Results .* {folder} \(File too large\)\. Set nnUNet_results"),
    ):
        make_trainer()
    make_trainer()
    assert not list(folder.rglob(".probe*"))
    shutil.rmtree(folder)
    folder.write_text("a file")
    with pytest.raises(StorageError, match=rf" {folder}/.* \(Not a directory\)\. Set nnUNet_results to"):
        make_trainer()
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(StorageError, match=r"nnUNet_results is not set\. Set it to "):
        make_trainer()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_for_a_folder(workspace: Workspace, monkeypatch, number: int):
    """Before the first case, as where no further file can be made."""

    def mkdir(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(StorageError, match=r"5 unlabelled case\(s\) .* not preprocessed yet.* \(.*\)\. Free some space there"):
        preprocess(dataset(workspace), 1)
