"""Checks of a raw unlabelled case, and of what preprocessing makes of it. Each problem is a sentence with its way out."""

import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_caml.conversion.integrity import damage, finite_in_file
from nnunet_caml.conversion.reading import SAME_GRID, corners
from nnunet_caml.unlabeled import DATASET_KEY, UnlabeledDataError, UnlabeledDataset


def check_files(case: str, files: Sequence[Path]) -> None:
    """Raises :class:`UnlabeledDataError` if a raw file of a case is missing, empty, truncated or damaged."""
    for file in files:
        if file.is_dir():
            raise UnlabeledDataError(
                f"{file} of unlabelled case {case} is a folder, not an image. Name a file that nnU-Net can read; a DICOM "
                f"series has to be converted first."
            )
        if not file.is_file():
            absent = file if file.parent.is_dir() else file.parent
            if name := unset_variable(absent.name if absent is file else str(absent)):
                kind = "PATH" if absent is file else "FOLDER"
                raise UnlabeledDataError(
                    f"{absent}, where unlabelled cases should be, does not exist: the environment variable {name}, which "
                    f'the entry "{DATASET_KEY}" of dataset.json uses, is not set here. export {name}={kind}, wherever '
                    f"unlabelled cases are preprocessed."
                )
            raise UnlabeledDataError(f"{file} of unlabelled case {case} does not exist. Add it or remove the case.")
        # ITK reads many a truncated file without an error.
        if reason := damage(file):
            raise UnlabeledDataError(f"{file} of unlabelled case {case} {reason}. Replace it or remove the case.")


def unset_variable(path: str) -> str | None:
    """Name of the first environment variable that ``os.path.expandvars`` left as it is."""
    unset = re.search(r"\$(\w+|\{\w+\})", path)
    return unset[1].strip("{}") if unset else None


def check_images(case: str, files: Sequence[Path], dataset: UnlabeledDataset) -> str:
    """Reads a raw case and raises :class:`UnlabeledDataError` if it cannot be trained with.

    Looked for: unreadable files, a number of channels other than in ``dataset.json``, geometry that differs between
    channels, NaN and infinite voxels, images without any nonzero voxel, two-dimensional images for a 3d configuration.

    Returns:
        Its shape and spacing, for messages.
    """
    reader = dataset.plans_manager.image_reader_writer_class()
    way_out = "Repair or remove the case."
    said = StringIO()
    single = []
    for file in files:
        try:
            # nnU-Net's readers explain themselves on standard output and raise errors without a text
            with redirect_stdout(said):
                single.append(reader.read_images([str(file)]))
        except Exception as error:
            reason = (str(error) or said.getvalue()).strip().splitlines()
            raise UnlabeledDataError(
                f"{file} of unlabelled case {case} cannot be read as an image "
                f"({reason[-1].strip() if reason else type(error).__name__}). {way_out}"
            ) from None
    channels = sum(data.shape[0] for data, _ in single)
    promised = len(dataset.configuration_manager.normalization_schemes)
    if channels != promised:
        raise UnlabeledDataError(
            f"Unlabelled case {case} ({', '.join(f.name for f in files)}) has {channels} channels, "
            f"the plans were made for {promised}. {way_out}"
        )
    for file, (data, properties) in zip(files, single, strict=True):
        if data.shape[1:] != single[0][0].shape[1:] or not np.allclose(properties["spacing"], single[0][1]["spacing"]):
            raise UnlabeledDataError(
                f"The channels of unlabelled case {case} differ in geometry: {files[0].name} has shape "
                f"{single[0][0].shape[1:]} and spacing {single[0][1]['spacing']}, {file.name} has {data.shape[1:]} "
                f"and {properties['spacing']}. Resample them to one grid or remove the case."
            )
        distance = apart(properties, single[0][1], data.shape[1:])
        if not distance <= SAME_GRID:
            raise UnlabeledDataError(
                f"The channels of unlabelled case {case} do not lie in the same place: the corners of {files[0].name} and "
                f"{file.name} are up to {distance:.3g} voxels apart ({SAME_GRID} allowed). Resample them to one grid or remove "
                f"the case."
            )
        if not np.isfinite(data).all() or not finite_in_file(file):
            raise UnlabeledDataError(f"{file} of unlabelled case {case} has NaN or infinite voxels. {way_out}")
        if len(dataset.configuration_manager.patch_size) == 3 and min(data.shape[1:]) == 1:
            raise UnlabeledDataError(
                f"{file} of unlabelled case {case} is two-dimensional (shape {data.shape[1:]}), but configuration "
                f"{dataset.configuration} is three-dimensional. Train the 2d configuration or remove the case."
            )
    if not any(data.any() for data, _ in single):
        raise UnlabeledDataError(f"Unlabelled case {case} ({files[0]}) is zero everywhere. {way_out}")
    spacing = ", ".join(f"{value:.4g}" for value in single[0][1]["spacing"])
    return f"shape {single[0][0].shape[1:]}, spacing ({spacing}) mm"


def apart(first: Mapping[str, Any], second: Mapping[str, Any], shape: Sequence[int]) -> float:
    """The largest distance of an outer corner from its counterpart, in voxels of the smallest spacing.

    Args:
        first: What nnU-Net's reader tells of an image besides its voxels.
        second: The same of another one of the same shape and spacing.
        shape: Of both, ``(z, y, x)``.

    Returns:
        0 for readers of formats that do not say where an image lies.
    """
    one, other = (outer_corners(properties, shape) for properties in (first, second))
    if one is None or other is None or one.shape != other.shape:
        return 0.0
    return float(np.linalg.norm(one - other, axis=1).max() / min(first["spacing"]))


def outer_corners(properties: Mapping[str, Any], shape: Sequence[int]) -> np.ndarray | None:
    """Positions of the outer corners in mm, ``(2 ** axes, axes)``; ``None`` where nnU-Net's reader says nothing of it."""
    if stuff := properties.get("sitk_stuff"):
        axes = min(len(stuff["origin"]), 3)  # a fourth counts channels
        turned = np.reshape(stuff["direction"], (len(stuff["origin"]),) * 2)[:axes, :axes]
        return corners(shape[::-1][:axes], turned * stuff["spacing"][:axes], stuff["origin"][:axes])
    if stuff := properties.get("nibabel_stuff"):
        affine = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]))
        return corners(shape[::-1], affine[:3, :3], affine[:3, 3])
    return None


def check_voxels(case: str, data: Any) -> None:
    """Raises :class:`UnlabeledDataError` if preprocessing has left nothing of a case that could be trained with.

    Args:
        case: Its name in the sentence.
        data: Preprocessed voxels ``(C, *spatial)``, on disk or in memory, read one channel at a time.
    """
    extremes = [(channel.min(), channel.max()) for channel in map(np.asarray, data)]
    if not np.isfinite(extremes).all():
        raise UnlabeledDataError(
            f"{case} has NaN or infinite voxels once it is preprocessed, as values such as -3.4e38 lead to, which stand for "
            f"voxels that were not measured. Replace such values or remove the case."
        )
    if all(low == high for low, high in extremes):
        raise UnlabeledDataError(
            f"{case} has one value everywhere once it is preprocessed. Correct its intensities or its spacing, or remove the "
            f"case."
        )
