"""Converts one case: read, check, write. This runs in the worker processes."""

import errno
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import SimpleITK as sitk

from nnunet_caml.conversion.cases import Case, Dataset, Reader
from nnunet_caml.conversion.errors import ConversionError
from nnunet_caml.conversion.headers import voxel_files
from nnunet_caml.conversion.integrity import damage
from nnunet_caml.conversion.reading import (
    SAME_GRID,
    check_finite,
    check_same_grid,
    ending_of,
    map_labels,
    read_image,
    same_geometry,
    split_channels,
    tiff_companion,
    voxels_apart,
)
from nnunet_caml.conversion.summary import Report

FOLDERS = {"labeled": ("imagesTr", "labelsTr"), "unlabeled": ("imagesUn", ""), "test": ("imagesTs", "labelsTs")}


@dataclass(frozen=True)
class Task:
    """All that a worker process needs to know about a case."""

    case: Case
    role: str
    dataset: Dataset
    folder: Path
    link: bool


def convert_or_explain(task: Task) -> Report | str:
    """Converts a case; returns a sentence where the case is at fault. What is not (a full disk) is raised."""
    try:
        return _convert_case(task)
    except ConversionError as error:
        return str(error)
    except (PermissionError, FileNotFoundError) as error:
        return f"{error.filename or task.case.images[0]} cannot be opened: {error.strerror}."
    except MemoryError:
        return f"{task.case.images[0]} does not fit into memory: try again with fewer processes (-np)."


def _convert_case(task: Task) -> Report:
    """Reads, checks and writes all files of one case."""
    case, dataset, ending = task.case, task.dataset, task.dataset.file_ending
    images_folder, labels_folder = FOLDERS[task.role]
    if case.label is not None and labels_folder and not case.label.is_file():  # before the work of reading images
        raise ConversionError(
            f"{case.label} does not exist, but {case.identifier} should have a label: complete the data set, "
            "give scans without labels with --unlabeled-from, or leave the case out (--skip-broken)."
        )
    channels: list[tuple[sitk.Image, Path]] = []
    for path in case.images:
        if case.frame is None:
            image = dataset.read_image(path)
            check_finite(image, path)
            channels += [(channel, path) for channel in split_channels(image)]
        else:
            image = _read_frame(dataset.read_image, path, case.frame)
            check_finite(image, path)
            channels.append((image, path))
    # the colours of a PNG are channels to nnU-Net
    found = sum(image.GetNumberOfComponentsPerPixel() for image, _ in channels)
    if found != len(dataset.channel_names):
        raise ConversionError(
            f"{case.images[0]}: the case {case.identifier} has {found} channels, but the data set has "
            f"{len(dataset.channel_names)} ({', '.join(dataset.channel_names)})."
        )
    first, first_path = channels[0]
    files: Counter[str] = Counter()
    alone = dataset.read_image is read_image and len(channels) == len(case.images) and case.frame is None
    for image, path in channels:
        check_same_grid(first, first_path, image, path)
    fitting = all(ending_of(path) == ending and same_geometry(image, first) for image, path in channels)
    if dataset.in_place and task.link and task.role == "unlabeled" and alone and fitting:
        # all channels or none, because the entry has to name all
        # not where links lead: caches keep files there under names without an ending
        used = [path.absolute() for _, path in channels]
        files["used in place"] = len(used)
        return Report(case.identifier, task.role, first.GetSize(), first.GetSpacing(), {}, files, used)
    for number, (image, path) in enumerate(channels):
        target = task.folder / images_folder / f"{case.identifier}_{number:04d}{ending}"
        files[_place(image, first, path if alone else None, target, task.link)] += 1
    voxels: dict[int, int] = {}
    if case.label is not None and labels_folder:
        label = dataset.read_label(case.label)
        check_same_grid(first, first_path, label, case.label)
        mapped, voxels = map_labels(label, case.label, dataset.source_values)
        unchanged = mapped is label and dataset.read_label is read_image
        target = task.folder / labels_folder / f"{case.identifier}{ending}"
        files[_place(mapped, first, case.label if unchanged else None, target, task.link)] += 1
    return Report(case.identifier, task.role, first.GetSize(), first.GetSpacing(), voxels, files)


def _read_frame(reader: Reader, path: Path, frame: int) -> sitk.Image:
    """One volume of a 4-D file."""
    state = path.stat() if path.is_file() else None  # a missing file is for the reader to complain of
    sequence = _read_sequence(reader, path, state and (state.st_mtime_ns, state.st_size))
    size = sequence.GetSize()
    if len(size) != 4 or frame >= size[3]:
        raise ConversionError(
            f"{path} has shape {size} (x, y, z, time), but volume {frame + 1} of a sequence is expected in it: "
            "download it again, or leave the case out (--skip-broken)."
        )
    return sitk.Extract(sequence, [*size[:3], 0], [0, 0, 0, frame])


@lru_cache(maxsize=1)  # all cases of a sequence follow one another, and unpacking it takes most of the time
def _read_sequence(reader: Reader, path: Path, state: tuple[int, int] | None) -> sitk.Image:
    return reader(path)


def _place(image: sitk.Image, grid: sitk.Image, source: Path | None, target: Path, link: bool) -> str:
    """Puts one file in its place.

    Args:
        image: The voxels.
        grid: The first channel, whose geometry all files of a case get.
        source: The file that already holds exactly these voxels, if there is one.
        target: The file to make.
        link: Link rather than copy.

    Returns:
        ``"linked"``, ``"copied"`` or ``"converted"``.
    """
    # a header names the file of its voxels from where it lies itself
    whole = source is not None and ending_of(source) == ending_of(target) and not voxel_files(source)
    if source is not None and whole and same_geometry(image, grid):
        companion = tiff_companion(source) if ending_of(source).startswith(".tif") else None
        if companion is not None:
            name = target.name[: -len(ending_of(target))]
            name = name[:-5] if target.parent.name.startswith("images") else name
            shutil.copyfile(companion, target.with_name(f"{name}.json"))
        if link:
            target.symlink_to(source.resolve())
            return "linked"
        shutil.copyfile(source, target)
        return "copied"
    if image.GetNumberOfComponentsPerPixel() > 1 or ending_of(target) in (".png", ".bmp", ".tif", ".tiff", ".gipl"):
        raise ConversionError(
            f"{source or target.name} would have to be written anew, which {ending_of(target)} files do not allow "
            "without loss: convert the source to .nii.gz first."
        )
    image.CopyInformation(grid)
    try:
        sitk.WriteImage(image, str(target), useCompression=True)
        written = sitk.ImageFileReader()
        written.SetFileName(str(target))
        written.ReadImageInformation()
    except RuntimeError as error:
        raise OSError(errno.EIO, "the disk may be full") from error  # not this case's fault
    if damage(target):  # ITK does not say that it could not write all of a compressed file
        raise OSError(errno.ENOSPC, "a file was cut short, the disk may be full")
    # NIfTI turns a direction matrix of few decimals into the nearest one with right angles
    if voxels_apart(written, grid) > SAME_GRID or written.GetPixelID() != image.GetPixelID():
        raise ConversionError(
            f"{ending_of(target)} cannot hold the spacing, origin, direction or voxel type of {target.name}: convert the "
            "source to a format that nnU-Net reads and that can, or leave the case out (--skip-broken)."
        )
    return "converted"


def remove(task: Task) -> None:
    """Removes what a broken case left behind."""
    identifier, ending = task.case.identifier, task.dataset.file_ending
    for name in filter(None, FOLDERS[task.role]):
        for number in range(len(task.dataset.channel_names)):
            (task.folder / name / f"{identifier}_{number:04d}{ending}").unlink(missing_ok=True)
        for left in (ending, ".json"):
            (task.folder / name / f"{identifier}{left}").unlink(missing_ok=True)
