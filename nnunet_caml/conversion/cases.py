"""What a converter finds in its source, and how the cases are split into labelled, unlabelled and test cases."""

import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from nnunet_caml.conversion.errors import ConversionError
from nnunet_caml.conversion.reading import ending_of, read_image

Reader = Callable[[Path], sitk.Image]


@dataclass(frozen=True)
class Case:
    """Where the files of one case are.

    Attributes:
        identifier: nnU-Net's name of the case: the file names without channel number and ending.
        images: One file for each channel in the order of ``Dataset.channel_names``; a 4-D file stands for all channels.
        label: The segmentation, ``None`` if the case has none. It has to exist if it is named.
        test: The source itself says that this is a test case.
        patient: Cases of one patient are labelled, or held out, together, and counted as one; ``""`` for a case of its own.
        frame: Which volume of a 4-D file the case is, from 0, where the fourth axis is time and not channels.
    """

    identifier: str
    images: Sequence[Path]
    label: Path | None = None
    test: bool = False
    patient: str = ""
    frame: int | None = None

    @property
    def unit(self) -> str:
        """What is drawn at random and never divided: the patient, or else the case."""
        return self.patient or self.identifier


@dataclass(frozen=True)
class Dataset:
    """What all cases have in common.

    Attributes:
        name: Goes into the folder's name, ``DatasetXXX_<name>``.
        channel_names: As in nnU-Net, where ``"CT"`` chooses the normalisation for CT.
        labels: Names and values as in nnU-Net: consecutive values from ``background`` 0, lists of values for regions.
        label_map: Value in the data set for every value that the source's labels may hold; ``None`` if they stay.
        read_image: Reads an image file. Has to be a function of a module (or a partial of one), because it is sent
            to worker processes.
        read_label: The same for labels.
        file_ending: Of the data set's files.
        ordered: The labelled cases are the first ones in the source's order instead of being drawn at random.
        in_place: With ``--link``, unlabelled files that need no conversion stay where they are, and the entry
            ``unlabeled`` of ``dataset.json`` names them; for data sets of thousands of unlabelled files.
        licence: Of the data, for ``dataset.json``, like ``reference``, the data's origin.
        further: More entries of ``dataset.json``.
    """

    name: str
    channel_names: Sequence[str]
    labels: Mapping[str, int | Sequence[int]]
    label_map: Mapping[int, int] | None = None
    read_image: Reader = read_image
    read_label: Reader = read_image
    file_ending: str = ".nii.gz"
    ordered: bool = False
    in_place: bool = False
    licence: str = ""
    reference: str = ""
    further: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name, re.ASCII):
            raise ConversionError(
                f"A data set's name consists of letters, digits, '_' and '-', got {self.name!r}: give one with --name."
            )
        if not self.channel_names:
            raise ConversionError("A data set needs the name of at least one channel, got none.")
        if self.labels.get("background") != 0:
            raise ConversionError(f"nnU-Net wants a label called background of value 0, got {dict(self.labels)}.")
        if self.values != list(range(len(self.values))) or len(self.values) < 2:
            raise ConversionError(
                f"nnU-Net wants labels with the consecutive values 0 (background), 1, 2, ..., got {dict(self.labels)}."
            )
        if not set(self.source_values.values()) <= set(self.values):
            raise ConversionError(
                f"label_map leads to {sorted(set(self.source_values.values()))}, but the labels are {self.values}."
            )

    @property
    def values(self) -> list[int]:
        """All label values of the data set, sorted."""
        lists = ([value] if isinstance(value, int) else value for value in self.labels.values())
        return sorted({int(value) for values in lists for value in values})

    @property
    def source_values(self) -> dict[int, int]:
        """``label_map``, or the identity."""
        return {value: value for value in self.values} if self.label_map is None else dict(self.label_map)


@dataclass(frozen=True)
class Split:
    """Identifiers of the cases of each kind, sorted; ``seed`` is ``None`` where nothing was drawn at random.

    Attributes:
        left_out: Cases without a label of patients that are tested: no figure comes of them, and no network may see them.
    """

    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    test: tuple[str, ...]
    seed: int | None = None
    left_out: tuple[str, ...] = ()

    def role(self, identifier: str) -> str:
        """``"labeled"``, ``"unlabeled"`` or ``"test"``."""
        return next(role for role in ("labeled", "unlabeled", "test") if identifier in getattr(self, role))


def draw_split(
    cases: Sequence[Case],
    labeled: int | None,
    *,
    labeled_cases: Sequence[str] | None = None,
    test: int = 0,
    seed: int = 0,
    ordered: bool = False,
) -> Split:
    """Decides which cases keep their label.

    All candidates are shuffled once; the first ``test`` of them are held out and the next ``labeled`` keep their label.
    So the test cases do not depend on ``labeled``, and with the same seed fewer labels are a subset of more. The order
    depends on the seed and the set of identifiers only, on any machine. Where cases name their patient, patients are
    drawn and counted. Whatever else there is of a test patient becomes a test case, too, lest the network see it, or is left
    out if it has no label, because nnU-Net's evaluation ends where a prediction has none.

    Args:
        cases: All cases found.
        labeled: How many keep their label; ``None`` for all.
        labeled_cases: Exactly those that keep it, instead of ``labeled``; they are never held out. A patient's name
            stands for all of the patient's cases.
        test: How many cases with a label to hold out, besides those that the source marks as test cases.
        seed: Of the draw.
        ordered: Nothing is drawn: candidates come in the order given.

    Raises:
        ConversionError: Two cases share an identifier, a listed case is unknown or has no label, or more cases are
            asked for than there are.
    """
    tested = {case.unit for case in cases if case.test}
    units: dict[str, list[str]] = defaultdict(list)  # the cases of each candidate
    for case in cases:
        if case.label is not None and case.unit not in tested:
            units[case.unit].append(case.identifier)
    known = {case.identifier for case in cases}
    listed = [
        identifier for name in labeled_cases or [] for identifier in ([name] if name in known else units.get(name, [name]))
    ]
    check_identifiers(cases, listed, [identifier for group in units.values() for identifier in group])
    for unit, group in units.items():
        missing = set(group) - set(listed)
        if missing and len(missing) < len(group):
            raise ConversionError(
                f"The list of labelled cases names a part of {unit} only, without {min(missing)}: all cases of a patient "
                f"have to be labelled or none, so list the others, too, or just {unit}."
            )
    candidates = list(units)
    if not ordered:
        generator = random.Random(seed)
        drawn = {unit: generator.random() for unit in sorted(candidates)}
        candidates.sort(key=drawn.__getitem__)
    kept = {unit for unit in candidates if set(units[unit]) & set(listed)}
    held_out = [unit for unit in candidates if unit not in kept][:test]
    rest = [unit for unit in candidates if unit not in held_out]
    what = "patients" if any(case.patient for case in cases) else "cases"
    if len(held_out) < test:
        raise ConversionError(f"--test {test} asks for more {what} than the {len(held_out)} that have a label to spare.")
    if labeled_cases is None:
        count = len(rest) if labeled is None else labeled
        if not 0 < count <= len(rest):
            raise ConversionError(
                f"--labeled {count} is not possible: there are {len(rest)} {what} with a label besides the test {what}, "
                f"so ask for 1 to {len(rest)}."
                if rest
                else "No case with a label is left besides the test cases: at least one labelled case is needed."
            )
        kept = set(rest[:count])
    tested |= set(held_out)
    everything_kept = labeled_cases is None and len(kept) == len(rest)
    by_lot = not ordered and (test > 0 or (labeled_cases is None and not everything_kept))
    labeled_ones = {identifier for unit in kept for identifier in units[unit]}
    of_tested = [case for case in cases if case.unit in tested]
    test_ones = {case.identifier for case in of_tested if case.test or case.label is not None}
    left_out = {case.identifier for case in of_tested} - test_ones
    return Split(
        labeled=tuple(sorted(labeled_ones)),
        unlabeled=tuple(sorted(known - labeled_ones - test_ones - left_out)),
        test=tuple(sorted(test_ones)),
        seed=seed if by_lot else None,
        left_out=tuple(sorted(left_out)),
    )


def check_identifiers(cases: Sequence[Case], listed: Sequence[str], candidates: Sequence[str]) -> None:
    """Raises ConversionError for unusable or repeated identifiers, and for listed cases that cannot be labelled."""
    if not cases:
        raise ConversionError("No case was found: check that SOURCE is the folder that the documentation describes.")
    for case in cases:
        if not re.fullmatch(r"[^\s/\\.][^\s/\\]*", case.identifier):
            raise ConversionError(
                f"{case.identifier!r} cannot name a case ({case.images[0]}): rename it without spaces and slashes, "
                "and with no dot at the start."
            )
        if case.identifier.endswith("_seg"):
            raise ConversionError(
                f"{case.images[0]}: nnU-Net's own files of labels end in _seg, so no case may. Take it away if it is a label, "
                "rename it if not."
            )
        for path in (*case.images, *([case.label] if case.label else [])):
            try:
                str(path).encode("utf-8")
            except UnicodeEncodeError:
                raise ConversionError(
                    f"{str(path)!r} has letters that are not UTF-8, which ITK cannot open: rename the file or folder."
                ) from None
    files = defaultdict(list)
    for case in cases:
        files[case.identifier].append(str(case.images[0]))
    for identifier, paths in files.items():
        if len(paths) > 1 and len(set(paths)) == 1:
            raise ConversionError(f"{identifier} ({paths[0]}) is named twice, perhaps as a test case as well: name it once.")
        if len(paths) > 1:
            raise ConversionError(f"Two cases are called {identifier}, {paths[0]} and {paths[1]}: rename one or take it away.")
    for identifier in listed:
        if identifier not in files:
            raise ConversionError(f"The list of labelled cases names {identifier}, but the source has no such case.")
        if identifier not in candidates:
            raise ConversionError(
                f"The list of labelled cases names {identifier}, which has no label or is a test case: take it out."
            )


def read_list(path: Path) -> list[str]:
    """Reads case identifiers, one a line; empty lines and lines that start with ``#`` are skipped.

    Raises:
        ConversionError: The file is missing, no text, empty, or names a case twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} cannot be read: it should be a text file with one case identifier a line.") from error
    identifiers = [line for line in lines if line and not line.startswith("#")]
    if not identifiers:
        raise ConversionError(f"{path} names no case: it should hold one case identifier a line.")
    twice = [identifier for identifier, count in Counter(identifiers).items() if count > 1]
    if twice:
        raise ConversionError(f"{path} names {twice[0]} more than once: every case belongs there once.")
    return identifiers


def only(cases: Sequence[Case], names: Sequence[str], path: Path) -> list[Case]:
    """Those of the cases that a list names, in their own order.

    Args:
        cases: All cases found.
        names: Identifiers, or patients for all of their cases.
        path: The list, for the message.

    Raises:
        ConversionError: It names what is not among the cases.
    """
    found = {name for case in cases for name in (case.identifier, case.unit)}
    if unknown := [name for name in names if name not in found]:
        raise ConversionError(
            f"{path} names {unknown[0]}, which SOURCE does not have ({len(unknown)} of {len(names)} are missing): complete "
            "the data set, or take it off the list."
        )
    return [case for case in cases if {case.identifier, case.unit} & set(names)]


def of_one_kind(named: Sequence[Case], folder: Path, files: Iterable[Path] = ()) -> list[Case]:
    """Cases that are named as in SOURCE, or else the images in the folder itself.

    Args:
        named: The former.
        folder: Where they were found.
        files: Files that are named so, too, but not wanted.

    Raises:
        ConversionError: There are both, and one kind would be left out.
    """
    known = {*files, *(path for case in named for path in case.images)}
    if not known:
        return list(find_images(folder))
    if others := sorted(set(image_files(folder)) - known):
        raise ConversionError(
            f"{folder} holds {min(known).name}, named as in SOURCE, and others such as {others[0].name}, which would be left "
            "out: put each kind into a folder of its own."
        )
    return list(named)


def image_files(folder: Path) -> list[Path]:
    """The files in a folder that may be images, without hidden ones."""
    return [path for path in sorted(folder.iterdir()) if ending_of(path) and not path.name.startswith(".")]


def find_images(folder: Path, channels: int = 1) -> Iterable[Case]:
    """Finds the images in a folder, as cases without a label.

    Files are either named like nnU-Net's (``CASE_0000.nii.gz``, with all channels) or there is one file a case
    (``CASE.nii.gz``). Hidden files and other kinds of files are skipped.

    Raises:
        ConversionError: There is no such folder or no image in it.
    """
    if not folder.is_dir():
        raise ConversionError(f"{folder} is no folder: it should hold image files such as CASE_0000.nii.gz.")
    files = image_files(folder)
    for below in (path for path in sorted(folder.iterdir()) if path not in files and not path.name.startswith(".")):
        with suppress(OSError):  # a file, or one of the system's own folders
            if any(ending_of(path) for path in below.iterdir()):
                print(f"{below} holds images as well, which are not taken: only those in {folder} itself are.", file=sys.stderr)
    if not files:
        raise ConversionError(f"{folder} holds no image: files such as CASE_0000.nii.gz are expected there.")
    by_stem = {_stem(path): path for path in files}
    for stem, path in by_stem.items():
        match = re.fullmatch(r"(.+)_(labels?|masks?|gt|segmentation)", stem, re.IGNORECASE)
        image = next((by_stem[name] for name in (match[1], f"{match[1]}_image") if name in by_stem), None) if match else None
        if image:
            raise ConversionError(
                f"{path} is called like the label of {image.name}, and would become an image: take it away, or rename it."
            )
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        groups[re.sub(r"_\d{4}$", "", _stem(path))].append(path)
    # "amos_0001" and "amos_0004" look like channels, too: complete sets of channels tell
    complete = [
        name
        for name, paths in groups.items()
        if [_stem(path) for path in paths] == [f"{name}_{channel:04d}" for channel in range(channels)]
    ]
    if 2 * len(complete) < len(groups):
        return [Case(_stem(path), [path]) for path in files]
    for name, paths in groups.items():
        if name in map(_stem, paths):
            raise ConversionError(
                f"{folder / paths[0].name} is not named like the other images there, such as {complete[0]}_0000: rename it or "
                "take it away."
            )
    # that channels are missing is said of the case
    return [Case(name, with_gaps([(path, int(_stem(path)[-4:])) for path in paths])) for name, paths in groups.items()]


def with_gaps(numbered: Sequence[tuple[Path, int]]) -> list[Path]:
    """Files of a case by channel; also of channels that are missing below the last one, so that none takes another's number.

    Args:
        numbered: Files with the numbers of their channels, ascending.

    Raises:
        ConversionError: Two files have one number.
    """
    found: dict[int, Path] = {}
    for path, number in numbered:
        if number in found:
            raise ConversionError(f"{found[number]} and {path} are the same channel of a case: take one of them away.")
        found[number] = path
    first, number = numbered[0]
    ending = ending_of(first) or first.suffix
    stem = first.name[: -len(f"{number:04d}{ending}")]
    return [found.get(channel, first.with_name(f"{stem}{channel:04d}{ending}")) for channel in range(max(found) + 1)]


def _stem(path: Path) -> str:
    """The file name without its ending, which may consist of two parts."""
    return path.name[: -len(ending_of(path))]
