"""Finds files by name in downloads whose folders are named in many ways."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

from nnunet_caml.conversion.errors import ConversionError

#: at the root of a disk, where nobody may look into them
OF_THE_SYSTEM = ("lost+found", "System Volume Information", "$RECYCLE.BIN")
#: nnU-Net's folders, which may lie on the disk of the downloads, with data sets of earlier conversions in them
OF_NNUNET = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def find_files(folder: Path, pattern: str) -> list[Path]:
    """All files below a folder whose names match.

    Only names are read, so that thousands of volumes cost nothing. Hidden files and folders are skipped.

    Args:
        folder: Where to search, at any depth.
        pattern: Regular expression for the whole name.

    Returns:
        The files, sorted by name and then by folder.

    Raises:
        ConversionError: There is no such folder, or an archive beside the files has matching files that nobody unpacked.
    """
    if not folder.is_dir():
        raise ConversionError(f"{folder} is no folder: it should hold the unpacked files of the data set.")
    found, archives = [], []
    for parent, folders, names in walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (name for name in names if not name.startswith(".")):
            if re.fullmatch(pattern, name):
                found.append(Path(parent, name))
            elif name.lower().endswith(".zip"):
                archives.append(Path(parent, name))
    known = {path.name for path in found}
    for archive in sorted(archives):
        for member in _members(archive):
            if re.fullmatch(pattern, member) and not member.startswith(".") and member not in known:
                raise ConversionError(
                    f"{archive} holds {member}, which is not among the unpacked files: unpack it, or keep it elsewhere."
                )
    return sorted(found, key=lambda path: (path.name, path))


def outside(files: Iterable[Path], folder: Path | None) -> list[Path]:
    """The files that do not lie in a folder: ``--unlabeled-from`` may be a part of SOURCE."""
    return [path for path in files if folder is None or folder.resolve() not in path.resolve().parents]


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` that follows links, but into no folder twice, rather under its own name than under a link's.

    What nnU-Net keeps below the folder is passed by.

    Raises:
        ConversionError: A folder cannot be opened: its cases would be left out without a word.
    """

    def refuse(error: OSError) -> None:
        raise ConversionError(f"{error.filename} cannot be opened: {error.strerror}.") from error

    seen = {os.path.realpath(os.environ[name]) for name in OF_NNUNET if os.environ.get(name)}
    seen.discard(os.path.realpath(folder))
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name not in OF_THE_SYSTEM]
        yield parent, folders, names
        folders.sort(key=lambda name: os.path.islink(os.path.join(parent, name)))


def _members(archive: Path) -> list[str]:
    """File names in a ZIP archive, without folders."""
    try:
        with ZipFile(archive) as file:
            return [PurePosixPath(name).name for name in file.namelist()]
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ConversionError(f"{archive} is not a readable ZIP archive: download it again, or take it away.") from error
