"""Errors that a user can mend, and how they look on a console.

nnU-Net's commands let errors through, and Python shows where in the code they were raised before it shows what they say. To
those who forgot a file only the latter is of use.
"""

import errno
import json
import sys
from contextlib import suppress
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

    Blosc2 and torch raise errors without a number when they cannot write, so what the error does not say is tried: writing
    ``PROBE_BYTES`` to a file in ``folder``.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    if not folder.is_dir():
        return False
    probe = folder / f".probe.{uuid4().hex}"
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as failure:
        return failure.errno in numbers
    finally:
        with suppress(OSError):  # where nothing was written, or nothing may be
            probe.unlink()
    return False


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
