"""Tells whether an image file is complete.

ITK reads a truncated ``.nii``, ``.nii.gz`` or ``.gipl`` file, and a damaged compressed ``.mha`` file, without an error:
the missing voxels are whatever the memory held. Half a download would become training data unnoticed, so checksums
and lengths are checked here first.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from nnunet_caml.conversion.headers import header_fields, voxel_files

CHUNK = 1 << 20  # bytes
NIFTI_FLOATS = {16: "f4", 64: "f8"}  # NIfTI's codes
GIPL_HEADER = 256  # bytes


def damage(path: Path) -> str | None:
    """What is wrong with the file, as the end of a sentence (``"is empty"``), or ``None``.

    Formats that carry neither a checksum nor a length outside the reader's own checks pass.
    """
    name = path.name.lower()
    try:
        if path.stat().st_size == 0:
            return "is empty"
        if name.endswith(".nii.gz"):
            with gzip.open(path) as file:
                return _nifti_damage(file)  # type: ignore[arg-type]
        with path.open("rb") as file:
            if name.endswith((".nii", ".nii.gz")):
                return _nifti_damage(file)
            if name.endswith((".nrrd", ".nhdr")):
                return _nrrd_damage(file, path)
            if name.endswith((".mha", ".mhd")):
                return _meta_damage(file, path)
            if name.endswith(".gipl"):
                return _gipl_damage(file)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return "is truncated or damaged"
    except (struct.error, UnicodeDecodeError, ValueError):
        return "has no valid header"
    return None


def finite_in_file(path: Path) -> bool:
    """Whether a NIfTI file has finite voxels only; ITK reads others as 0, so its images do not tell."""
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        return True
    with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
        header = _nifti_header(file)  # type: ignore[arg-type]
        if header is None or header.kind not in NIFTI_FLOATS:
            return True
        kind = np.dtype(f"{header.order}{NIFTI_FLOATS[header.kind]}")
        file.seek(header.first_voxel)
        left = math.prod(header.shape) * kind.itemsize
        while left > 0 and (chunk := file.read(min(CHUNK, left))):
            if not np.isfinite(np.frombuffer(chunk[: len(chunk) // kind.itemsize * kind.itemsize], kind)).all():
                return False
            left -= len(chunk)
    return True


def _length(file: BinaryIO) -> int:
    """Bytes from here to the end; reading them also makes gzip check its checksum."""
    return sum(len(chunk) for chunk in iter(lambda: file.read(CHUNK), b""))


class _NiftiHeader(NamedTuple):
    """What of a NIfTI header tells where the voxels are; ``kind`` is its code of their type, ``offset`` in bytes."""

    order: str
    shape: tuple[int, ...]
    kind: int
    bits: int
    offset: float
    size: int

    @property
    def first_voxel(self) -> int:
        """In bytes; header and extension come before it, whatever ``offset`` says, to ITK as well."""
        return max(int(self.offset), self.size + 4)


def _nifti_header(file: BinaryIO) -> _NiftiHeader | None:
    """The header, of which 540 bytes are read; ``None`` if it is none."""
    header = file.read(540)
    order = next((o for o in "<>" if struct.unpack(f"{o}i", header[:4])[0] in (348, 540)), None)
    if order is None:
        return None
    (size,) = struct.unpack(f"{order}i", header[:4])
    if size == 348:  # NIfTI-1
        dimensions = struct.unpack(f"{order}8h", header[40:56])
        kind, bits = struct.unpack(f"{order}2h", header[70:74])
        (offset,) = struct.unpack(f"{order}f", header[108:112])
    else:
        dimensions = struct.unpack(f"{order}8q", header[16:80])
        kind, bits = struct.unpack(f"{order}2h", header[12:16])
        (offset,) = struct.unpack(f"{order}q", header[168:176])
    if not 1 <= dimensions[0] <= 7 or min(dimensions[1 : dimensions[0] + 1]) < 1 or not 0 <= offset < 2**40:
        return None
    return _NiftiHeader(order, dimensions[1 : dimensions[0] + 1], kind, bits, offset, size)


def _nifti_damage(file: BinaryIO) -> str | None:
    header = _nifti_header(file)
    if header is None:
        return "has no valid header"
    expected = int(header.offset) + math.prod(header.shape) * header.bits // 8
    file.seek(0)
    if _length(file) < expected:
        return f"is truncated (its header promises {expected} bytes)"
    return None


def _gunzip_damage(file: BinaryIO) -> str | None:
    with gzip.GzipFile(fileobj=file) as stream:
        _length(stream)  # type: ignore[arg-type]
    return None


def _nrrd_damage(file: BinaryIO, path: Path) -> str | None:
    fields = header_fields(file, ":", ("data file", "datafile"))
    apart = voxel_files(path)
    if missing := _missing(apart, path):
        return missing
    if fields.get("encoding", "").lower() not in ("gz", "gzip"):
        return None  # the reader itself complains of missing raw data
    return _each(apart, _gunzip_damage) if apart else _gunzip_damage(file)


def _meta_damage(file: BinaryIO, path: Path) -> str | None:
    fields = header_fields(file, "=", ("elementdatafile",))
    if not fields.get("elementdatafile"):
        return "has no valid header"
    apart = voxel_files(path)
    if missing := _missing(apart, path):
        return missing
    if fields.get("compresseddata", "").lower() != "true":
        return None  # the reader itself complains of missing raw data
    return _each(apart, _zlib_damage) if apart else _zlib_damage(file)


def _missing(apart: Sequence[Path], header: Path) -> str | None:
    for part in apart:
        if not part.is_file():
            return f"needs the file {part.name} beside it" if part.parent == header.parent else f"needs the file {part}"
    return None


def _each(apart: Sequence[Path], damage_of: Callable[[BinaryIO], str | None]) -> str | None:
    for part in apart:
        with part.open("rb") as file:
            if reason := damage_of(file):
                return reason
    return None


def _zlib_damage(file: BinaryIO) -> str | None:
    stream = zlib.decompressobj(32 + zlib.MAX_WBITS)  # zlib's or gzip's own header
    for chunk in iter(lambda: file.read(CHUNK), b""):
        while chunk and not stream.eof:
            stream.decompress(chunk, CHUNK)
            chunk = stream.unconsumed_tail
    return None if stream.eof else "is truncated or damaged"


def _gipl_damage(file: BinaryIO) -> str | None:
    header = file.read(GIPL_HEADER)
    sizes = struct.unpack(">4H", header[:8])
    (kind,) = struct.unpack(">H", header[8:10])
    bits = {1: 1, 7: 8, 8: 8, 15: 16, 16: 16, 31: 32, 32: 32, 64: 32, 65: 64}.get(kind)
    if bits is None or min(sizes[:2]) < 1:
        return "has no valid header"
    expected = math.prod(max(size, 1) for size in sizes) * bits // 8
    return f"is truncated (its header promises {expected} bytes of voxels)" if _length(file) < expected else None
