"""What is recorded of a preprocessed unlabelled case: of which files it was made, for which plans, and what came of it.

One JSON file a case, in the hidden folder ``.state`` of the preprocessed cases, written when all else is.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from nnunet_caml.conversion.headers import voxel_files

__all__ = [
    "STATE_FOLDER",
    "CaseState",
    "file_digest",
    "read_sources",
    "renewed_sources",
    "source_files",
    "voxel_digest",
]

STATE_FOLDER = ".state"
#: what nnU-Net's reader of 3-D TIFF looks for beside a case's images: CASE.json with the spacing
SIDECAR = ".json"


@dataclass(frozen=True)
class CaseState:
    """What is recorded of a finished case.

    Attributes:
        fingerprint: Of the plans it was preprocessed with.
        sources: Of the raw files, see :func:`read_sources`. A raw case whose files differ is done again.
        content: Digest of the preprocessed voxels: equal for two cases exactly if their voxels are equal.
        files: Size in bytes of each preprocessed file, by name; none where earlier versions have recorded none.
    """

    fingerprint: str
    sources: dict[str, Any]
    content: str
    files: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "CaseState | None":
        """The state in ``file``, or ``None`` if there is none or it is not readable as one."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def damaged(self, folder: Path) -> list[str]:
        """Names of the preprocessed files that are missing in ``folder``, or have another size than they were written with."""

        def size(name: str) -> int | None:
            try:
                return (folder / name).stat().st_size
            except FileNotFoundError:
                return None

        return [name for name, written in self.files.items() if size(name) != written]

    def write(self, file: Path) -> None:
        """Writes the file as a whole or not at all."""
        self._write(file, time=None)

    def renew(self, file: Path, sources: dict[str, Any]) -> None:
        """Records other times of the same raw files, where that can be written.

        The file keeps its own time: what was made from the preprocessed case, as predictions for a cascade, is no older for it.
        """
        with suppress(OSError):  # a folder that is read-only, or a case that another run is replacing
            replace(self, sources=sources)._write(file, time=file.stat().st_mtime_ns)

    def _write(self, file: Path, time: int | None) -> None:
        temporary = file.with_name(f".{file.name}.{uuid4().hex}")
        temporary.write_text(json.dumps(asdict(self), indent=1, sort_keys=True), encoding="utf-8")
        if time is not None:
            os.utime(temporary, ns=(time, time))
        temporary.replace(file)


def source_files(files: Sequence[Path]) -> list[Path]:
    """Raw files of a case: its images, their voxels where these are apart, and the file with their spacing if there is one."""
    name, is_tiff = re.subn(r"_\d{4}\.tiff?$", SIDECAR, files[0].name, flags=re.IGNORECASE)
    sidecar = files[0].with_name(name)
    voxels = [file for image in files for file in voxel_files(image) if file.is_file()]
    return [*files, *voxels, sidecar] if is_tiff and sidecar.is_file() else [*files, *voxels]


def read_sources(files: Sequence[Path]) -> dict[str, list]:
    """Size in bytes, time of the last change in ns, and digest of each raw file of a case, by name."""
    described = {}
    for name, file in _by_name(files).items():
        status = file.stat()
        described[name] = [status.st_size, status.st_mtime_ns, file_digest(file)]
    return described


def renewed_sources(recorded: Mapping[str, Any], files: Sequence[Path]) -> dict[str, list] | None:
    """What :func:`read_sources` says of the raw files of a case now if they are those recorded, else ``None``.

    They are read only if their time has changed.
    """
    there = _by_name(files)
    if recorded.keys() != there.keys():
        return None
    renewed = {}
    for name, file in there.items():
        size, changed, digest = recorded[name] if isinstance(recorded[name], list) else (None, None, None)
        status = file.stat()
        if status.st_size != size or (status.st_mtime_ns != changed and file_digest(file) != digest):
            return None
        renewed[name] = [size, status.st_mtime_ns, digest]
    return renewed


def _by_name(files: Sequence[Path]) -> dict[str, Path]:
    """The raw files of a case by name; channels may have one name in several folders, the second is ``NAME (2)`` then."""
    found: dict[str, Path] = {}
    for file in source_files(files):
        name, number = file.name, 1
        while name in found:
            number += 1
            name = f"{file.name} ({number})"
        found[name] = file
    return found


def file_digest(file: Path) -> str:
    """Digest of the bytes of a file."""
    digest = sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def voxel_digest(data: Any) -> str:
    """Digest of an array ``(C, *spatial)`` on disk or in memory, read one channel at a time."""
    digest = sha256(repr(tuple(data.shape)).encode())
    for channel in range(data.shape[0]):
        digest.update(np.ascontiguousarray(data[channel]).tobytes())
    return digest.hexdigest()
