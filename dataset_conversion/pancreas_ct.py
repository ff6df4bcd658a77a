#!/usr/bin/env python
"""NIH Pancreas-CT, as The Cancer Imaging Archive hands it out.

SOURCE holds PANCREAS_0001, PANCREAS_0002, ... with one DICOM series each (.dcm), and label0001.nii.gz, ... (0 and 1),
both at any depth. The 62 training and 20 test cases are those of MC-Net's lists (Wu et al., github.com/ycwu1997/MC-Net;
the order of its train.list as in github.com/cys1102/FBA-Net), which are built in. The first cases of the training list
are the labelled ones, its others the unlabelled ones. Cases 25 and 70, which the archive withdrew as duplicates of
case 2, are left out where SOURCE lacks them.

The labels' headers are not trusted: which way a label lies is found by comparing it with the image, see --label-flip.
"""

import itertools
import re
from argparse import ArgumentTypeError, Namespace
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_caml.conversion import (
    Case,
    CaseLists,
    ConversionError,
    Dataset,
    argument_parser,
    find_files,
    find_images,
    main,
    read_image,
)
from nnunet_caml.conversion.cases import image_files
from nnunet_caml.conversion.searching import walk

LABELED_HELP = (
    "how many cases keep their label, in the order of the training list (default: 12, about 20 %%; the literature has "
    "6 and 12, about 10 and 20 %% of 62)"
)
TRAIN = (
    *(57, 18, 62, 31, 20, 17, 32, 79, 61, 64, 70, 19, 48, 76, 41, 52, 49, 71, 72, 34, 10, 15, 77, 80, 27, 47, 22, 14),
    *(68, 58, 7, 11, 24, 42, 82, 35, 12, 55, 75, 78, 16, 13, 53, 23, 56, 33, 38, 30, 81, 29, 36, 44, 2, 45, 26, 65),
    *(66, 43, 28, 63, 69, 3),
)
TEST = (50, 59, 37, 60, 40, 74, 4, 46, 8, 54, 5, 73, 1, 39, 6, 67, 25, 51, 21, 9)
WITHDRAWN = (25, 70)
LISTS = CaseLists()
WAY_OUT = "download the series again, or leave the case out (--skip-broken)"

EVEN = 0.05  # share of the distance of two slices by which another distance may differ
PARALLEL = 0.01  # how far an entry of a direction matrix may be from -1, 0 or 1
SPACING = 0.01  # share by which spacings of image and label may differ
WINDOW_HU = (-125, 275)  # soft tissue with what surrounds it; bone and air beyond would drown the organ's own edge
CONTRAST_HU = 5.0  # least contrast at the label's surface that counts as an organ's edge
FLIPS = list(itertools.product((False, True), repeat=3))  # x, y, z


def read_series(folder: Path) -> sitk.Image:
    """Reads the one DICOM series in a folder, at any depth, as integer Hounsfield units where the series allows it.

    GDCM drops files that it cannot read, and ITK takes the distance of the first two slices for all of them: both would
    go unnoticed, so every file has to be part of the series, and the slices evenly spaced.
    """
    files = find_files(folder, r"(?i).+\.dcm") if folder.is_dir() else []
    if not files:
        raise ConversionError(f"{folder} holds no DICOM files (.dcm), but one series is expected there: {WAY_OUT}.")
    folders = sorted({path.parent for path in files})
    if len(folders) > 1:
        raise ConversionError(f"{folder} holds DICOM files in {folders[0]} and {folders[1]}, but one series is expected.")
    try:
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folders[0]))
        if len(series) != 1:
            raise ConversionError(f"{folders[0]} holds {len(series)} DICOM series where one is expected: {WAY_OUT}.")
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folders[0]), series[0])
        left_out = sorted(set(files) - {Path(name) for name in names})
        if left_out:
            raise ConversionError(f"{left_out[0]} is not a readable DICOM image (truncated or damaged): {WAY_OUT}.")
        distance = _slice_distance(names)
        reader = sitk.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileNames(names)
        image = reader.Execute()
    except RuntimeError as error:  # of GDCM
        raise ConversionError(f"{folders[0]} is not a readable DICOM series (damaged): {WAY_OUT}.") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() > 1:
        raise ConversionError(f"{folders[0]} holds something else than grey slices of one volume: {WAY_OUT}.")
    image.SetSpacing([*image.GetSpacing()[:2], distance])
    array = sitk.GetArrayViewFromImage(image)
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2 and array.min() >= -(2**15) and array.max() < 2**15:
        image = sitk.Cast(image, sitk.sitkInt16)  # GDCM chooses a type that any rescaled value would fit into
    return image


def _slice_distance(names: Sequence[str]) -> float:
    """Distance of the slices in mm, of files in the order of their slices.

    Raises:
        ConversionError: A slice is missing, lies askew or differs in shape or direction.
    """
    if len(names) < 2:
        raise ConversionError(f"{names[0]} is the only slice of its series: {WAY_OUT}.")
    positions, grids = [], []
    for name in names:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(name)
        reader.ReadImageInformation()
        positions.append(np.array(reader.GetOrigin()))
        grids.append(np.array([*reader.GetSize()[:2], *reader.GetSpacing()[:2], *reader.GetDirection()]))
        if grids[-1].shape != grids[0].shape or not np.allclose(grids[-1], grids[0], rtol=1e-4, atol=1e-4):
            raise ConversionError(f"{name} differs from {names[0]} in shape, spacing or direction: {WAY_OUT}.")
    normal = np.array(grids[0][4:]).reshape(3, 3)[:, 2]
    offsets = np.array(positions) - positions[0]
    along = offsets @ normal
    steps = np.diff(along)
    uneven = np.flatnonzero(np.abs(steps - np.median(steps)) > EVEN * abs(np.median(steps)))
    if not np.median(steps) or len(uneven):
        where = uneven[0] if len(uneven) else 0
        raise ConversionError(
            f"{names[where]} and {names[where + 1]} are {abs(steps[where]):.4g} mm apart, but most slices "
            f"{abs(np.median(steps)):.4g} mm: a slice is missing or there twice; {WAY_OUT}."
        )
    askew = np.linalg.norm(offsets - along[:, None] * normal, axis=1).max()
    if askew > 0.1 * min(grids[0][2:4]):
        raise ConversionError(f"The slices beside {names[0]} are shifted against each other (tilted gantry): {WAY_OUT}.")
    return abs(float(along[-1])) / (len(names) - 1)


def read_scan(path: Path) -> sitk.Image:
    """Reads a folder with a DICOM series, or an image file."""
    return read_image(path) if path.is_file() else read_series(path)


def read_label(path: Path, folders: Mapping[str, Path], flip: str) -> sitk.Image:
    """Reads a label and lays it onto the voxel grid of its image.

    Args:
        path: The label.
        folders: The folder of the DICOM series for each label's path.
        flip: ``"auto"``, ``"none"`` or the axes to flip, such as ``"y"`` or ``"xz"``.

    Returns:
        The label with the image's geometry.

    Raises:
        ConversionError: It does not fit onto the grid, or neither the image nor the header say which way.
    """
    folder = folders[str(path)]
    image, label = read_series(folder), read_image(path)
    if label.GetDimension() != 3:
        raise ConversionError(f"{path} has {label.GetDimension()} axes where a label volume of 3 is expected.")
    if flip == "auto":
        label, header = _with_axes_of(image, label, path, folder)
    if label.GetSize() != image.GetSize():
        raise ConversionError(
            f"{folder} has shape {image.GetSize()} but {path} has {label.GetSize()} (x, y, z): "
            "they should lie on the same voxel grid; check that they belong together."
        )
    if flip == "auto":
        chosen = _flip_by_comparison(image, label, header, path)
    else:
        chosen = tuple(axis in flip for axis in "xyz") if flip != "none" else (False, False, False)
    label = sitk.Flip(label, [bool(axis) for axis in chosen])
    label.CopyInformation(image)
    return label


def _with_axes_of(image: sitk.Image, label: sitk.Image, path: Path, folder: Path) -> tuple[sitk.Image, tuple[bool, ...]]:
    """Brings a label's axes into the image's order; also says which of them its header wants flipped."""
    directions = [np.array(volume.GetDirection()).reshape(3, 3) for volume in (image, label)]
    relative = directions[0].T @ directions[1]  # how far each of the label's axes (columns) runs along the image's
    whole = np.rint(relative)
    if np.abs(relative - whole).max() > PARALLEL or not (np.abs(whole).sum(axis=0) == 1).all():
        raise ConversionError(
            f"{path} has axes that are not parallel to those of {folder}: check that they belong together, "
            "or say with --label-flip how the label's voxels lie on the image's."
        )
    order = [int(axis) for axis in np.abs(whole).argmax(axis=1)]
    label = sitk.PermuteAxes(label, order)
    if not np.allclose(label.GetSpacing(), image.GetSpacing(), rtol=SPACING, atol=0):
        raise ConversionError(
            f"{path} has the spacing {label.GetSpacing()} but {folder} has {image.GetSpacing()} mm: check that they belong "
            "together, or say with --label-flip how the label's voxels lie on the image's."
        )
    return label, tuple(bool(whole[axis, order[axis]] < 0) for axis in range(3))


def _flip_by_comparison(image: sitk.Image, label: sitk.Image, header: tuple[bool, ...], path: Path) -> tuple[bool, ...]:
    """The flip that puts the label's surface onto an edge in the image.

    The pancreas is brighter than the fat around it: across the surface of a label in the right place, Hounsfield units
    fall from inside to outside on average, and hardly do across that of a label elsewhere. The flip with the
    highest fall is taken if the label's header has the same, or if it is beyond doubt: twice as high as any other.
    """
    falls = contrasts(sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(label) != 0)
    if not falls:
        raise ConversionError(f"{path} is empty, so that nothing shows which way it lies: leave it out (--skip-broken).")
    best, second = sorted(falls, key=falls.__getitem__, reverse=True)[:2]
    if falls[best] >= CONTRAST_HU and (best == header or falls[second] <= falls[best] / 2):
        return best
    names = {flip: "".join(itertools.compress("xyz", flip)) or "none" for flip in FLIPS}
    raise ConversionError(
        f"{path}: the image does not show clearly which way the label lies (inside minus outside {falls[best]:.3g} HU with "
        f"the flip {names[best]!r}, {falls[second]:.3g} HU with {names[second]!r}; its header says {names[header]!r}): look at "
        "it, and flip the file, leave the case out (--skip-broken), or say with --label-flip how all labels lie."
    )


def contrasts(image: np.ndarray, mask: np.ndarray) -> dict[tuple[bool, ...], float]:
    """Mean fall in HU from inside to outside across the surface of a mask, for every flip ``(x, y, z)`` of the mask.

    Args:
        image: HU, ``(z, y, x)``.
        mask: Of the same shape.

    Returns:
        Nothing for an empty mask, or one without a surface.
    """
    bounds = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(filled):
            return {}
        bounds.append((max(int(filled[0]) - 1, 0), min(int(filled[-1]) + 2, mask.shape[axis])))
    inner = mask[tuple(slice(low, high) for low, high in bounds)].astype(np.int8)
    found = {}
    for flip in FLIPS:
        window = tuple(
            slice(size - high, size - low) if flipped else slice(low, high)
            for (low, high), size, flipped in zip(bounds, mask.shape, flip[::-1], strict=True)
        )
        part = np.clip(image[window].astype(np.float32), *WINDOW_HU)
        part = np.flip(part, tuple(axis for axis in range(3) if flip[::-1][axis]))
        fall, count = 0.0, 0
        for axis in range(3):
            step = np.diff(inner, axis=axis)
            fall += float((np.diff(part, axis=axis) * step).sum(dtype=np.float64))
            count += int(np.abs(step).sum(dtype=np.int64))
        if not count:
            return {}
        found[flip] = fall / count
    return found


def case_numbers(folder: Path | None) -> Iterator[tuple[int, bool]]:
    """The cases of the training and the test list in their order, each with whether it is a test case."""
    if folder is None:
        yield from ((number, False) for number in TRAIN)
        yield from ((number, True) for number in TEST)
        return
    for line, name in LISTS.read(folder):
        match = re.fullmatch(r"(?:image|label|PANCREAS_)?(\d{4})", line)
        if match is None:
            raise ConversionError(f"{folder / name}.list has the line {line!r}: names such as image0001 are expected there.")
        yield int(match[1]), name == "test"


def patient_folders(source: Path) -> dict[int, list[Path]]:
    """Folders called PANCREAS_0001 and so on, by number, at any depth."""
    found = defaultdict(list)
    for parent, folders, _ in walk(source):
        for name in sorted(folders):
            if re.fullmatch(r"PANCREAS_\d{4}", name):
                found[int(name[-4:])].append(Path(parent, name))
        folders[:] = [name for name in folders if not re.fullmatch(r"\..*|PANCREAS_\d{4}", name)]
    if not found:
        raise ConversionError(f"{source} holds no folder PANCREAS_0001: SOURCE should be the folder of the unpacked download.")
    return found


def has_files(folder: Path) -> bool:
    """Whether there is a file in it, at any depth; a download of today leaves empty folders of withdrawn cases."""
    return any(files for _, _, files in walk(folder))


def find(source: Path, options: Namespace) -> Iterable[Case]:
    """The cases of both lists."""
    folders = patient_folders(source)
    labels = label_files(source)
    for number, test in case_numbers(options.lists):
        if number in WITHDRAWN and not any(has_files(folder) for folder in folders.get(number, [])):
            place = "" if test else "; if it should have been labelled, the next of the list is in its place"
            print(f"PANCREAS_{number:04d} is left out: the archive has withdrawn it{place}.")
            continue
        label = labels.get(number, source / f"label{number:04d}.nii.gz")
        for folder in folders.get(number, [source / f"PANCREAS_{number:04d}"]):
            yield Case(f"PANCREAS_{number:04d}", [folder], label, test)


def label_files(source: Path) -> dict[int, Path]:
    """Label files by number."""
    found: dict[int, Path] = {}
    for path in find_files(source, r"label\d{4}\.nii(\.gz)?"):
        if int(path.name[5:9]) in found:
            raise ConversionError(f"{found[int(path.name[5:9])]} and {path} are labels of the same case: take one away.")
        found[int(path.name[5:9])] = path
    return found


def dataset(source: Path, options: Namespace) -> Dataset:
    """The data set, whose labels are read together with their images."""
    folders = patient_folders(source)
    labels = label_files(source)
    return Dataset(
        name="PancreasCT",
        channel_names=["CT"],
        labels={"background": 0, "pancreas": 1},
        read_image=read_scan,
        read_label=partial(
            read_label,
            folders={str(path): folders[number][0] for number, path in labels.items() if number in folders},
            flip=options.label_flip,
        ),
        ordered=True,
        licence="CC BY 3.0",
        reference="NIH Pancreas-CT, The Cancer Imaging Archive, https://doi.org/10.7937/K9/TCIA.2016.tNB1kqBU",
    )


def find_unlabeled(folder: Path) -> Iterable[Case]:
    """More cases: a folder with a DICOM series for each, or image files."""
    if not folder.is_dir():
        raise ConversionError(f"{folder} is no folder: it should hold folders with DICOM series, or image files.")
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    series = [path for path in folders if any(f.suffix.lower() == ".dcm" for f in path.rglob("*"))]
    if not series:
        return find_images(folder)
    if others := [*(path for path in folders if path not in series), *image_files(folder)]:
        raise ConversionError(
            f"{folder} holds a series of .dcm files in {series[0].name}, and {others[0].name}, which has none and would be "
            "left out: give DICOM files the ending .dcm, and take away what is no series."
        )
    return [Case(path.name, [path]) for path in series]


def axes(text: str) -> str:
    """A value of ``--label-flip``."""
    if text not in ("auto", "none") and (not text or len(set(text)) != len(text) or set(text) - set("xyz")):
        raise ArgumentTypeError(f"expected 'auto', 'none', or axes such as 'y' or 'xz', got {text!r}")
    return text


if __name__ == "__main__":
    parser = argument_parser(__doc__, default_labeled=12, labeled_help=LABELED_HELP, draws_test=False)
    parser.add_argument(
        "--lists", type=Path, metavar="DIR", help="folder of other lists train.list and test.list (names such as image0001)"
    )
    parser.add_argument(
        "--label-flip",
        type=axes,
        default="auto",
        metavar="AXES",
        help="which voxel axes of the labels to flip: 'none', or axes such as 'y' or 'xz', for all labels and whatever their "
        "headers say; by default, each label is flipped the way that puts its surface onto an edge in the image, and is "
        "an error where the image leaves doubt",
    )
    main(find, dataset, parser, find_unlabeled=find_unlabeled)
