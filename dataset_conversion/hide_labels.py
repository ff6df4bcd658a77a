#!/usr/bin/env python
"""Hides labels of a data set in nnU-Net's raw format, to learn how much the labels are worth.

SOURCE is a folder DatasetXXX_Name with imagesTr, labelsTr and dataset.json. The cases that keep their label are drawn
at random, or listed; the others become unlabelled. Cases in imagesTs stay test cases, those in imagesUn or in the entry
"unlabeled" of dataset.json stay unlabelled.
Files are copied as they are, in the format they have. With the same --seed and --test, fewer labels are a subset of
more.
"""

import json
import re
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable
from os.path import expandvars, lexists
from pathlib import Path
from typing import Any

from nnunet_caml.conversion import Case, ConversionError, Dataset, argument_parser, main
from nnunet_caml.conversion.cases import with_gaps
from nnunet_caml.conversion.reading import ending_of
from nnunet_caml.conversion.writer import UNLABELED_KEY

REPLACED = ("name", "channel_names", "labels", "numTraining", "file_ending", "dataset", "licence", "reference", UNLABELED_KEY)


def description(source: Path) -> dict[str, Any]:
    """The data set's own ``dataset.json``."""
    path = source / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for key in ("labels", "channel_names", "file_ending"):
            content[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(
            f"{path} is not the description of an nnU-Net v2 data set (labels, channel_names, file_ending): SOURCE "
            "should be a folder DatasetXXX_Name with imagesTr, labelsTr and dataset.json."
        ) from error
    return content


def dataset(source: Path, options: Namespace) -> Dataset:
    """All that the data set says about itself."""
    content = description(source)
    try:
        return Dataset(
            name=options.name or source.resolve().name.partition("_")[2],
            channel_names=[str(content["channel_names"][key]) for key in sorted(content["channel_names"], key=int)],
            labels={
                name: [int(v) for v in value] if isinstance(value, list) else int(value)
                for name, value in content["labels"].items()
            },
            file_ending=content["file_ending"],
            licence=str(content.get("licence", "")),
            reference=str(content.get("reference", "")),
            further={key: value for key, value in content.items() if key not in REPLACED},
        )
    except ConversionError:
        raise
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise ConversionError(f"{source / 'dataset.json'} is not as nnU-Net describes it: {error}.") from error


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The cases of ``imagesTr`` (or of the list in ``dataset.json``), ``imagesTs``, ``imagesUn`` and the entry "unlabeled"."""
    content = description(source)
    ending = content["file_ending"]
    for folder in (source / name for name in ("imagesTs", "labelsTs", "imagesUn")):
        if folder.is_symlink() and not folder.exists():
            raise ConversionError(
                f"{folder} is a link to {folder.readlink()}, which is not there, and its cases would be left out: connect "
                "that disk, or take the link away."
            )
    patients, listed = patients_of(source), list(entries(source, content, UNLABELED_KEY))
    if "dataset" in content:  # nnU-Net's way of naming files in any place
        for identifier, images, label in entries(source, content, "dataset"):
            yield Case(identifier, images, label, patient=patients.get(identifier, ""))
    else:
        if not (source / "imagesTr").is_dir():
            raise ConversionError(f"{source} has no folder imagesTr: SOURCE should be a folder DatasetXXX_Name.")
        found = dict(channel_files(source / "imagesTr", ending))
        labels = {name[: -len(ending)] for name in names_in(source / "labelsTr") if name.endswith(ending)}
        elsewhere = dict(channel_files(source / "imagesUn", ending)).keys() | {identifier for identifier, *_ in listed}
        for identifier in sorted(found.keys() | (labels - elsewhere)):
            # a label whose image is lost is a broken case, not none
            images = found.get(identifier, [source / "imagesTr" / f"{identifier}_0000{ending}"])
            label = source / "labelsTr" / f"{identifier}{ending}"
            yield Case(identifier, images, label, patient=patients.get(identifier, ""))
    tests = [] if options.without_test else channel_files(source / "imagesTs", ending)
    for identifier, images in tests:
        label = source / "labelsTs" / f"{identifier}{ending}"
        label_or_none = label if lexists(label) else None  # a link to nowhere is a lost label, not none
        yield Case(identifier, images, label_or_none, test=True, patient=patients.get(identifier, ""))
    for identifier, images in channel_files(source / "imagesUn", ending):
        yield Case(identifier, images, patient=patients.get(identifier, ""))
    for identifier, images, _ in listed:
        yield Case(identifier, images, patient=patients.get(identifier, ""))


def entries(source: Path, content: dict[str, Any], key: str) -> Iterable[tuple[str, list[Path], Path]]:
    """Identifier, images and label (``source`` if none is named) of an entry of ``dataset.json`` that names files anywhere."""
    try:
        for identifier, entry in content.get(key, {}).items():
            images = [source / expandvars(image) for image in entry["images"]]
            if not images or isinstance(entry["images"], str):
                raise TypeError(f"no images for {identifier}")
            yield identifier, images, source / expandvars(entry["label"] if key == "dataset" else "")
    except (AttributeError, TypeError, KeyError) as error:
        wanted = '{case: {"images": [files], "label": file}}' if key == "dataset" else '{case: {"images": [files]}}'
        raise ConversionError(f"{source / 'dataset.json'}: the entry {key!r} should be {wanted} ({error}).") from error


def patients_of(source: Path) -> dict[str, str]:
    """Patients by case, where the converter that made the data set has written them down: they are not divided here, either."""
    path = source / "split.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(case): str(patient) for case, patient in content.get("patients", {}).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise ConversionError(
            f"{path} cannot be read, and patients with several cases might be divided: restore it, or take it away if every "
            "case is a patient's only one."
        ) from error


def names_in(folder: Path) -> list[str]:
    """Names of the files in a folder but hidden ones, sorted; none if there is no such folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def channel_files(folder: Path, ending: str) -> Iterable[tuple[str, list[Path]]]:
    """Every identifier in the folder with its files by channel, :func:`with_gaps`; none if there is no such folder.

    Raises:
        ConversionError: A file is not named as nnU-Net wants it, or lies in a folder within, and would be left out.
    """
    files = defaultdict(list)
    for name in names_in(folder):
        if inner := next((path for path in sorted((folder / name).glob("*")) if ending_of(path)), None):
            raise ConversionError(f"{inner} lies in a folder within {folder}, where nnU-Net reads no images: move it.")
        if not ending_of(Path(name)) and not name.endswith(ending):  # no image, such as the spacing of a TIFF file
            continue
        match = re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", name)
        if match is None:
            raise ConversionError(
                f"{folder / name} is not named CASE_0000{ending} as nnU-Net wants it: rename or convert it, or take it away."
            )
        files[match[1]].append((folder / name, int(match[2])))
    return [(identifier, with_gaps(numbered)) for identifier, numbered in files.items()]


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--without-test",
        action="store_true",
        help="leave the cases in imagesTs out, so that choices can be made on others (see --test)",
    )
    main(find, dataset, parser)
