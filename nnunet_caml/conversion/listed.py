"""Data sets whose cases are named in lists, and those of them that are a folder of one h5 file a case.

This is how the semi-supervised literature shares data: normalised volumes, and beside them a list of training cases,
whose first ones are labelled, and one of test cases.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_caml.conversion.cases import Case, read_list
from nnunet_caml.conversion.errors import ConversionError


def required_folder(source: Path, name: str) -> Path:
    """The folder of that name in ``source``.

    Raises:
        ConversionError: There is none.
    """
    if not (source / name).is_dir():
        raise ConversionError(f"{source} has no folder {name!r} of .h5 files: SOURCE should be the folder that holds it.")
    return source / name


@dataclass(frozen=True)
class CaseLists:
    """Text files that name the cases, one a line.

    Attributes:
        origin: Where the lists come from, for the sentence about a missing one; ``""`` if the user has to know.
        names: Of the lists, without ending.
        endings: Those under which the lists are passed on; the first one is named where a list is missing.
        option: The converter has the option ``--lists``, see :meth:`add_option`.
    """

    origin: str = ""
    names: Sequence[str] = ("train", "test")
    endings: Sequence[str] = (".list",)
    option: bool = True

    @property
    def files(self) -> str:
        """The names in a sentence, such as ``"train.list and test.list"``."""
        *first, last = (f"{name}{self.endings[0]}" for name in self.names)
        return f"{', '.join(first)} and {last}" if first else last

    def add_option(self, parser: ArgumentParser, default: str = "SOURCE") -> None:
        """Adds ``--lists``, the folder of the lists; ``default`` says in its help what holds without it."""
        parser.add_argument("--lists", type=Path, metavar="DIR", help=f"folder of {self.files} (default: {default})")

    def read(self, folder: Path) -> list[tuple[str, str]]:
        """All identifiers in the order of the lists, each with the name of its list.

        Raises:
            ConversionError: A list is missing, or no list of identifiers.
        """
        paths = {name: self._path(folder, name) for name in self.names}  # all of them, before any is read
        return [(identifier, name) for name, path in paths.items() for identifier in read_list(path)]

    def _path(self, folder: Path, name: str) -> Path:
        for ending in self.endings:
            if (folder / f"{name}{ending}").is_file():
                return folder / f"{name}{ending}"
        origin = f" (they come with {self.origin})" if self.origin else ""
        elsewhere = ", or say with --lists where they are" if self.option else ""
        raise ConversionError(
            f"{folder / name}{self.endings[0]} does not exist: put the literature's {self.files} there{origin}{elsewhere}."
        )


@dataclass(frozen=True)
class H5Cases:
    """A folder of one h5 file a case, image and label in one, with lists of training and test cases.

    Attributes:
        folder: The folder's name in ``SOURCE``.
        ending: What follows the identifier in a file's path, such as ``"_norm.h5"``, or ``"/image.h5"`` where each case
            has a folder of its own.
        lists: In ``SOURCE``, or in the folder of ``--lists``.
    """

    folder: str
    ending: str
    lists: CaseLists

    def find(self, source: Path, options: Namespace) -> Iterable[Case]:
        """The listed cases, in the order of the lists; a file that is missing is noticed when the case is converted."""
        folder = required_folder(source, self.folder)
        for identifier, name in self.lists.read(options.lists or source):
            path = folder / f"{identifier}{self.ending}"
            yield Case(identifier, [path], path, test=name == "test")

    def find_unlabeled(self, folder: Path) -> Iterable[Case]:
        """All cases in a folder, listed or not."""
        for path in sorted(folder.glob(f"[!.]*{self.ending}")):
            yield Case(path.relative_to(folder).as_posix().removesuffix(self.ending), [path])
