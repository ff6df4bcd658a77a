"""Errors that a user can mend, and how they look on a console.

nnU-Net's commands let errors through, and Python shows where in the code they were raised before it shows what they say. To
those who forgot a file only the latter is of use.
"""

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

__all__ = [
    "FileContentError",
    "StorageError",
    "UnsupportedError",
    "UserError",
    "WorkerError",
    "is_full",
    "read_json",
    "show_sentences",
    "storage_of_results",
    "try_writing",
]

PROBE_BYTES = 2**22


class UserError(Exception):
    """Something that the user can mend; the message is one or more sentences that name it and the way out."""


class UnsupportedError(UserError, NotImplementedError):
    """Something that CAML cannot work with, such as a network that is no U-Net."""


class StorageError(UserError, OSError):
    """Something cannot be written: no space is left, or nothing may be written there."""


class WorkerError(UserError, RuntimeError):
    """A worker process has ended before its work was done, most likely because memory ran out."""


class FileContentError(UserError, ValueError):
    """A file does not hold what it should."""


def read_json(file: Path) -> Any:
    """The content of a JSON file, which users may have written, edited or copied by hand.

    Raises:
        FileContentError: It is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise FileContentError(f"{file} is no valid JSON ({error}). Correct it, or make or copy it again.") from None


def is_full(folder: Path, error: Exception) -> bool:
    """Whether ``error`` came from a full disk or a used up quota.

    Blosc2 and torch raise errors without a number when they cannot write, so what the error does not say is tried.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    if not folder.is_dir():
        return False
    try:
        try_writing(folder)
    except OSError as failure:
        return failure.errno in numbers
    return False


def try_writing(folder: Path) -> None:
    """Writes ``PROBE_BYTES`` to a file in ``folder`` and removes it; raises ``OSError`` if that cannot be done."""
    probe = folder / f".probe.{uuid4().hex}"
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    finally:
        with suppress(OSError):  # where nothing was written, or nothing may be
            probe.unlink()


@contextmanager
def storage_of_results() -> Iterator[None]:
    """Raises :class:`StorageError` in place of errors when nnU-Net makes its results folder, or has been told of none."""
    if not os.environ.get("nnUNet_results"):
        raise StorageError("The environment variable nnUNet_results is not set. Set it to the folder for trained models.")
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"Results cannot be written to {error.filename or os.environ['nnUNet_results']} ({error.strerror}). Set "
            f"nnUNet_results to a folder that you may write to and that has space left."
        ) from None


def show_sentences() -> None:
    """From now on an uncaught :class:`UserError` ends Python with its message alone; all else is shown as before."""
    before = sys.excepthook
    if getattr(before, "__module__", None) == __name__:
        return

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, UserError):
            print(f"ERROR: {error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = show
