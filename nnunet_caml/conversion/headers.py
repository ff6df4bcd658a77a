"""Which files hold the voxels of an image whose header is a file of its own.

MetaImage names them in its last line (``ElementDataFile``), NRRD in ``data file``: one file, ``LIST`` with a file a line
after it, or a pattern with numbers, such as ``slice%03d.raw 1 80 1`` (MetaIO's and teem's descriptions of the formats).
Analyze, and NIfTI in two files, have ``.img`` beside ``.hdr``.
"""

from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["header_fields", "voxel_files"]

#: by ending, what is between name and value, and the names of the field that tells where the voxels are
NAMES = {
    ".mha": ("=", ("elementdatafile",)),
    ".mhd": ("=", ("elementdatafile",)),
    ".nrrd": (":", ("data file", "datafile")),
    ".nhdr": (":", ("data file", "datafile")),
}
MOST_LINES = 1000  # of a header
LONGEST_LINE = 10_000  # bytes
MOST_FILES = 100_000  # of an image; a damaged header may promise any number


def header_fields(file: BinaryIO, separator: str, last: tuple[str, ...]) -> dict[str, str]:
    """Fields of a text header, by names in lower case, up to an empty line or to one of the fields ``last``.

    Args:
        file: At the beginning of the header; after it when done.
        separator: Between name and value.
        last: Names of fields which end the header: what follows is voxels, or names of files.
    """
    fields = {}
    for _ in range(MOST_LINES):
        line = file.readline(LONGEST_LINE).decode("latin-1").strip()
        name, found, value = line.partition(separator)
        name = name.strip().lower()
        if found:
            fields[name] = value.strip()
        if not line or name in last:
            break
    return fields


def voxel_files(image: Path) -> list[Path]:
    """Files beside a header that should hold its voxels, in order; none for an image that is one file, or is not there."""
    ending = image.suffix.lower()
    if ending == ".hdr":
        return [image.with_suffix(".img")]
    if ending not in NAMES:
        return []
    separator, names = NAMES[ending]
    with suppress(FileNotFoundError), image.open("rb") as file:
        fields = header_fields(file, separator, names)
        value = next((fields[name] for name in names if name in fields), "")
        if value and value.upper() != "LOCAL":
            return [image.parent / name for name in _names(value, file, fields)]
    return []


def _names(value: str, file: BinaryIO, fields: dict[str, str]) -> list[str]:
    """Names of the files, from the field's value and, for a list, from what follows in the header."""
    words = value.split()
    if words[0].upper() == "LIST":
        lines = (file.readline(LONGEST_LINE).decode("latin-1").strip() for _ in range(MOST_FILES))
        return [line for line in iter(lambda: next(lines, ""), "") if line]
    if "%" in value:
        with suppress(ValueError, TypeError):  # a name that happens to have the character
            return _numbered(words[0], [int(word) for word in words[1:4]], fields)
    return [value]


def _numbered(pattern: str, numbers: list[int], fields: dict[str, str]) -> list[str]:
    """Names by a pattern; the first number, the last one and the step may be left out, and say one file a slice then."""
    slices = int((fields.get("dimsize") or fields.get("sizes") or "1").split()[-1])
    first = numbers[0] if numbers else 1
    last = numbers[1] if len(numbers) > 1 else first + slices - 1
    step = numbers[2] if len(numbers) > 2 else 1
    return [pattern % number for number in range(first, last + 1, step)[:MOST_FILES]]
