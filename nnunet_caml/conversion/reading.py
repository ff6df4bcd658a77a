"""Reads images and checks what is in them.

Arrays are ``(z, y, x)``; SimpleITK's sizes and spacings are ``(x, y, z)``.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_caml.conversion.errors import ConversionError
from nnunet_caml.conversion.integrity import damage, finite_in_file

SUPPORTED = (".nii.gz", ".nrrd", ".mha", ".gipl", ".nii", ".png", ".bmp", ".tif", ".tiff")  # by nnU-Net 2.8
READABLE = (*SUPPORTED, ".mhd")
SAME_GRID = 0.01  # voxels: how far apart corners of image and label may lie
GEOMETRY = 1e-6  # absolute and relative: how far apart the geometry of files may be that are taken as they are
# of an array to bytes of its HDF5 file: twice what its compression can do, and a damaged size is far beyond it
MOST_BYTES_PER_BYTE = 2000

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what ITK warns of is either checked here or harmless


def ending_of(path: Path) -> str:
    """The ending (``.nii.gz``) if images with it can be read, else an empty string."""
    return next((ending for ending in READABLE if path.name.lower().endswith(ending)), "")


def read_image(path: Path) -> sitk.Image:
    """Reads any 2-D, 3-D or 4-D image file that nnU-Net or ITK can read.

    Raises:
        ConversionError: The file is missing, empty, truncated, or no image.
    """
    if not path.is_file():
        raise ConversionError(f"{path} does not exist: complete the download, or leave the case out (--skip-broken).")
    way_out = "copy or download it again, or leave the case out (--skip-broken)"
    try:
        fault = damage(path)
        if fault:
            raise ConversionError(f"{path} {fault}: {way_out}.")
        readers = {".tif": _read_tiff, ".tiff": _read_tiff, ".png": _read_picture, ".bmp": _read_picture}
        image = readers.get(ending_of(path), sitk.ReadImage)(path)
        if not finite_in_file(path):  # ITK reads such voxels as 0
            raise ConversionError(_not_finite(path))
    except (ConversionError, MemoryError, PermissionError, FileNotFoundError):
        raise
    except Exception as error:
        # ITK does not read every rotation that NIfTI can hold, and says so in its message's last lines
        if "orthonormal" in str(error):
            raise ConversionError(
                f"{path} has a direction matrix that is not orthonormal (sheared axes): rewrite its header, "
                "or leave the case out (--skip-broken)."
            ) from error
        raise ConversionError(f"{path} is not a readable image (damaged, or not what its name says): {way_out}.") from error
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)  # ITK would write some of it into the new file: scan dates, names, odd header codes
    return image


def _read_picture(path: Path) -> sitk.Image:
    """Reads a picture as nnU-Net does; ITK would turn grey BMP files into colours and read half a PNG."""
    from imageio.v3 import imread

    array = imread(path)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return sitk.GetImageFromArray(array, isVector=array.ndim == 3)


def _read_tiff(path: Path) -> sitk.Image:
    """Reads a TIFF as nnU-Net does: 2-D or 3-D, spacing ``(z, y, x)`` in a JSON file beside it."""
    import tifffile

    array = tifffile.imread(path)
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 3 and array.shape[2] in (3, 4))
    companion = tiff_companion(path)
    if companion is not None and image.GetDimension() == 3:
        image.SetSpacing([float(value) for value in json.loads(companion.read_text())["spacing"]][::-1])
    return image


def tiff_companion(path: Path) -> Path | None:
    """``CASE.json`` of ``CASE_0000.tif`` or ``CASE.tif``, where nnU-Net keeps a TIFF's spacing, if it is there."""
    stem = path.name[: -len(ending_of(path))]
    names = [stem, stem[:-5]] if len(stem) > 5 and stem[-5] == "_" else [stem]
    return next((path.with_name(f"{name}.json") for name in names if path.with_name(f"{name}.json").is_file()), None)


def read_h5(path: Path, key: str, spacing_mm: Sequence[float], axes: str = "xyz") -> sitk.Image:
    """Reads one array of an HDF5 file, which has no geometry of its own.

    Args:
        path: The file.
        key: Name of the array in it.
        spacing_mm: ``(x, y, z)``.
        axes: Order of the array's axes, ``"xyz"`` or ``"zyx"``; ``"xy"`` or ``"yx"`` for a slice.

    Returns:
        The image with its origin at 0 and the identity as direction; voxels keep their type.

    Raises:
        ConversionError: The file is missing, damaged, or has no such array of as many axes.
    """
    try:
        import h5py
    except ImportError as error:
        raise ConversionError("Reading .h5 files needs h5py: pip install h5py.") from error
    if not path.is_file():
        raise ConversionError(f"{path} does not exist: complete the download, or leave the case out (--skip-broken).")
    try:
        with h5py.File(path, "r") as file:
            found = {name: item.shape for name, item in file.items() if isinstance(item, h5py.Dataset)}
            if len(found.get(key, ())) != len(axes):
                number = {2: "two", 3: "three"}[len(axes)]
                raise ConversionError(f"{path} should hold an array {key!r} of {number} axes but holds {found}.")
            promised = math.prod(found[key]) * file[key].dtype.itemsize
            if promised > MOST_BYTES_PER_BYTE * path.stat().st_size:
                raise ConversionError(
                    f"{path} is damaged (it promises {promised} bytes of {key!r}, more than a file of its size can hold): "
                    "copy or download it again, or leave the case out (--skip-broken)."
                )
            array = file[key][()]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(
            f"{path} is not a readable HDF5 file: copy or download it again, or leave the case out (--skip-broken)."
        ) from error
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # ITK knows this machine's order only
    if array.dtype.kind not in "iuf" or array.size == 0:
        raise ConversionError(f"{path}: the array {key!r} should hold numbers but is {array.dtype}, {array.shape}.")
    if array.dtype == np.float16:
        array = array.astype(np.float32)  # ITK has no half precision
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose() if axes[0] == "x" else array))
    image.SetSpacing([float(value) for value in spacing_mm])
    return image


def split_channels(image: sitk.Image) -> list[sitk.Image]:
    """The volumes of a 4-D image along its last axis; any other image as it is, in a list of one."""
    if image.GetDimension() != 4:
        return [image]
    size = list(image.GetSize())
    return [sitk.Extract(image, [*size[:3], 0], [0, 0, 0, channel]) for channel in range(size[3])]


def check_finite(image: sitk.Image, path: Path) -> None:
    """Raises ConversionError if a voxel is NaN or infinite."""
    array = sitk.GetArrayViewFromImage(image)
    # slice by slice: a mask of the whole volume would need a quarter of its memory again
    if array.dtype.kind == "f" and not all(np.isfinite(part).all() for part in array):
        raise ConversionError(_not_finite(path))


def _not_finite(path: Path) -> str:
    return (
        f"{path} has voxels that are NaN or infinite: replace them by a value that means something in your images, "
        "or leave the case out (--skip-broken)."
    )


def check_same_grid(first: sitk.Image, first_path: Path, second: sitk.Image, second_path: Path) -> None:
    """Raises ConversionError unless both images have the same shape and lie in the same place.

    The same place means that no corner is more than :data:`SAME_GRID` voxels (of the smallest spacing) away from its
    counterpart, which covers spacing, origin and direction at once.
    """
    if first.GetSize() != second.GetSize():
        raise ConversionError(
            f"{first_path} has shape {first.GetSize()} but {second_path} has {second.GetSize()} (x, y, z): "
            "they should lie on the same voxel grid; check that they belong together."
        )
    distance = voxels_apart(first, second)
    if not distance <= SAME_GRID:
        raise ConversionError(
            f"{first_path} and {second_path} do not lie in the same place: their corners are up to {distance:.3g} "
            f"voxels apart ({SAME_GRID} allowed); check spacing, origin and direction of both."
        )


def voxels_apart(first: sitk.Image | sitk.ImageFileReader, second: sitk.Image) -> float:
    """The largest distance of a corner from its counterpart, in voxels of the smallest spacing; shapes are the same."""
    return float(np.linalg.norm(_corners(first) - _corners(second), axis=1).max() / min(second.GetSpacing()))


def _corners(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """Positions of the outer corners in mm, ``(2 ** dimensions, dimensions)``."""
    turned = np.reshape(image.GetDirection(), (len(image.GetSize()), -1))
    return corners(image.GetSize(), turned * image.GetSpacing(), image.GetOrigin())


def corners(size: Sequence[int], matrix: np.ndarray, origin: Sequence[float] | np.ndarray) -> np.ndarray:
    """Positions of the outer corners of a grid in mm, ``(2 ** dimensions, dimensions)``.

    Args:
        size: In voxels, of each axis.
        matrix: ``(dimensions, axes)``, in mm a voxel; the columns are the axes.
        origin: Of the first voxel's centre, in mm.
    """
    ends = [(-0.5, voxels - 0.5) for voxels in size]
    return np.asarray(origin) + np.array(list(itertools.product(*ends))) @ matrix.T


def same_geometry(first: sitk.Image | sitk.ImageFileReader, second: sitk.Image) -> bool:
    """Whether spacing, origin and direction agree to :data:`GEOMETRY`."""
    return all(
        np.allclose(one, other, rtol=GEOMETRY, atol=GEOMETRY)
        for one, other in (
            (first.GetSpacing(), second.GetSpacing()),
            (first.GetOrigin(), second.GetOrigin()),
            (first.GetDirection(), second.GetDirection()),
        )
    )


def count_values(image: sitk.Image) -> Counter[float]:
    """How many voxels hold each value."""
    counter: Counter[float] = Counter()
    for part in sitk.GetArrayViewFromImage(image):  # slice by slice, because sorting a whole volume is slow
        values, counts = np.unique(part, return_counts=True)
        counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return counter


def map_labels(label: sitk.Image, path: Path, label_map: Mapping[int, int]) -> tuple[sitk.Image, dict[int, int]]:
    """Replaces label values.

    Args:
        label: Segmentation of any voxel type that holds integers.
        path: Where it is from, for the error.
        label_map: Value in the data set for each value that the source may hold.

    Returns:
        The label, the very object given if it has an integer type and every value in it stays; and the voxels per
        value of the data set.

    Raises:
        ConversionError: There is another value.
    """
    if label.GetNumberOfComponentsPerPixel() > 1:
        raise ConversionError(f"{path} is a colour image where one number a voxel is expected: convert it first.")
    found = count_values(label)
    unexpected = [value for value in found if value not in label_map]
    if unexpected:
        raise ConversionError(
            f"{path} holds the value {unexpected[0]:g} where a label of {sorted(label_map)} is expected: "
            "check that this is the right label file, or leave the case out (--skip-broken)."
        )
    voxels: Counter[int] = Counter()
    for value, count in found.items():
        voxels[label_map[int(value)]] += count
    array = sitk.GetArrayViewFromImage(label)
    if array.dtype.kind in "iu" and all(label_map[int(value)] == value for value in found):
        return label, dict(sorted(voxels.items()))
    mapped = np.zeros(array.shape, np.uint8 if max(label_map.values()) < 256 else np.uint16)
    for value in found:
        if label_map[int(value)]:
            mapped[array == value] = label_map[int(value)]
    image = sitk.GetImageFromArray(mapped)
    image.CopyInformation(label)
    return image, dict(sorted(voxels.items()))
