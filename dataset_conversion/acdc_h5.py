#!/usr/bin/env python
"""ACDC, as the semi-supervised literature shares it (SSL4MIS, github.com/HiLab-git/SSL4MIS).

SOURCE holds data/slices/patientXXX_frameYY_slice_N.h5 (training, 2-D), data/patientXXX_frameYY.h5 (validation and test,
slice, y, x), each with the arrays image (float32, 0 to 1) and label (0 to 3), and train.list, train_slices.list,
val.list and test.list. Slices are stacked into volumes. The first patients of train.list keep the labels of both
frames, its other cases are unlabelled, those of test.list are the test cases. Those of val.list are left out unless
--use-validation-images makes them unlabelled cases.

The files keep no spacing, and it differs from patient to patient. All cases get 1.5625 x 1.5625 x 10 mm, which is
common in ACDC (--spacing for others): nnU-Net then resamples nothing, and knows that slices are thick. Do not
measure in mm on these images: acdc.py keeps the true spacing.
"""

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import SimpleITK as sitk

from acdc import DATASET
from nnunet_caml.conversion import (
    Case,
    CaseLists,
    ConversionError,
    Dataset,
    argument_parser,
    main,
    read_h5,
    read_list,
    required_folder,
)

LABELED_HELP = (
    "how many patients keep the labels of their two frames (default: 7, a tenth; the literature has 3, 7 and 14, which "
    "are 68, 136 and 256 slices), in the order of train.list; at random with --draw"
)
LISTS = CaseLists("SSL4MIS, github.com/HiLab-git/SSL4MIS, folder data/ACDC", names=("train", "val", "test"), option=False)
SPACING_MM = (1.5625, 1.5625, 10.0)
SLICE = re.compile(r"(.+)_slice_(\d+)\.h5")


def dataset(source: Path, options: Namespace) -> Dataset:
    """With the literature's order, or drawn at random."""
    if min(options.spacing) <= 0:
        raise ConversionError(f"--spacing has to be above 0, got {' '.join(map(str, options.spacing))}.")
    path = source / "train_slices.list"
    listed = Counter(name.rpartition("_slice_")[0] for name in read_list(path)) if path.is_file() else {}
    return replace(
        DATASET,
        ordered=not options.draw,
        read_image=partial(read_case, key="image", spacing_mm=options.spacing, slices=dict(listed)),
        read_label=partial(read_case, key="label", spacing_mm=options.spacing, slices=dict(listed)),
    )


def slices_of(folder: Path, identifier: str) -> dict[int, Path]:
    """The files of a case's slices, in the order of their numbers."""
    found = {}
    for path in folder.glob(f"{identifier}_slice_*.h5"):
        match = SLICE.fullmatch(path.name)
        if match and match[1] == identifier:
            found[int(match[2])] = path
    return dict(sorted(found.items()))


def read_case(path: Path, key: str, spacing_mm: Sequence[float], slices: Mapping[str, int]) -> sitk.Image:
    """Reads a volume, or stacks the slices that belong to a file.

    Args:
        path: The volume, or the first slice of a case.
        key: ``"image"`` or ``"label"``.
        spacing_mm: ``(x, y, z)``.
        slices: How many slices a case has, as far as it is known.
    """
    match = SLICE.fullmatch(path.name)
    if match is None:
        return read_h5(path, key, spacing_mm, axes="zyx")
    found = slices_of(path.parent, match[1])
    if not found:
        raise ConversionError(f"{path} does not exist: complete the download, or leave the case out (--skip-broken).")
    first = min(found) if min(found) in (0, 1) else 1
    count = slices.get(match[1], max(found) - first + 1)
    missing = sorted(set(range(first, first + count)) - set(found))
    if missing or len(found) != count:
        fault = f"{match[1]}_slice_{missing[0]}.h5 is missing" if missing else f"there are {len(found)}"
        raise ConversionError(
            f"{path.parent} should hold {count} slices of {match[1]}, but {fault}: complete the download, or leave the "
            "case out (--skip-broken)."
        )
    images = [read_h5(file, key, spacing_mm[:2], axes="yx") for file in found.values()]
    for image, file in zip(images, found.values(), strict=True):
        kinds = (images[0].GetSize(), images[0].GetPixelID()), (image.GetSize(), image.GetPixelID())
        if kinds[0] != kinds[1]:
            raise ConversionError(
                f"{file}: the array {key!r} has shape {image.GetSize()} (x, y) and type {image.GetPixelIDTypeAsString()}, "
                f"but slice {first} has {images[0].GetSize()} and {images[0].GetPixelIDTypeAsString()}: "
                "copy or download it again, or leave the case out (--skip-broken)."
            )
    return sitk.JoinSeries(images, 0.0, spacing_mm[2])


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The cases of all lists."""
    data = required_folder(source, "data")
    for line, name in LISTS.read(source):
        if name == "val" and not options.use_validation_images:
            continue
        identifier = line.removesuffix(".h5")
        path = first_file(data, identifier, sliced=name == "train")
        patient = identifier.partition("_")[0]
        yield Case(identifier, [path], None if name == "val" else path, test=name == "test", patient=patient)


def first_file(data: Path, identifier: str, sliced: bool) -> Path:
    """The volume, or the first slice; a name to complain of where there is neither."""
    volume = data / f"{identifier}.h5"
    stack = list(slices_of(data / "slices", identifier).values()) or [data / "slices" / f"{identifier}_slice_1.h5"]
    preferred, other = (stack[0], volume) if sliced else (volume, stack[0])
    return preferred if preferred.is_file() or not other.is_file() else other


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More cases: ``patientXXX_frameYY.h5`` in the folder itself."""
    paths = [path for path in sorted(folder.glob("[!.]*.h5")) if not SLICE.fullmatch(path.name)]
    return [Case(path.stem, [path], patient=path.stem.partition("_")[0]) for path in paths]


if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=7, labeled_help=LABELED_HELP, draws_test=False)
    parser.add_argument("--use-validation-images", action="store_true", help="take those of val.list as unlabelled cases")
    parser.add_argument("--draw", action="store_true", help="draw the labelled patients at random (--seed)")
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        default=SPACING_MM,
        metavar=("X", "Y", "Z"),
        help="in mm, for all cases (default: 1.5625 1.5625 10)",
    )
    main(find, dataset, parser, find_unlabeled=find_unlabeled)
