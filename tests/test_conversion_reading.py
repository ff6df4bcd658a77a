"""Files as they are read: damaged ones, label values, frames of a sequence, slices."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_damage import image_or_clean_error
from conversion_helpers import OBLIQUE, assert_same_geometry, image_of, random_image, random_label, voxels, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_caml.conversion import Case, ConversionError, Dataset, convert, draw_split, read_h5, read_image
from nnunet_caml.conversion.reading import map_labels

PICTURES = [".png", ".bmp", ".tif"]
KINDS = [".nii", ".nii.gz", ".nrrd", ".mha", ".gipl", "raw.mha", "raw.nrrd", *PICTURES]


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> dict[str, bytes]:
    """A complete image file of every kind."""
    folder = tmp_path_factory.mktemp("complete")
    content = {}
    for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".gipl"):
        content[ending] = write(folder / f"i{ending}", random_image(0), **OBLIQUE).read_bytes()
    for ending in PICTURES:
        path = folder / f"i{ending}"
        sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 99, (20, 30)).astype(np.uint8)), path)
        content[ending] = path.read_bytes()
    sitk.WriteImage(image_of(random_image(0), **OBLIQUE), str(folder / "raw.mha"), False)
    sitk.WriteImage(image_of(random_image(0), **OBLIQUE), str(folder / "raw.nrrd"), False)
    content["raw.mha"], content["raw.nrrd"] = (folder / "raw.mha").read_bytes(), (folder / "raw.nrrd").read_bytes()
    return content


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_noticed(tmp_path, complete, kind):
    """ITK itself reads most truncated NIfTI files without complaint, with whatever the memory held."""
    whole, path = complete[kind], tmp_path / f"i{kind}"
    path.write_bytes(whole)
    expected = sitk.GetArrayFromImage(read_image(path))
    if kind not in PICTURES:
        np.testing.assert_array_equal(expected, random_image(0))
    for length in [*range(0, len(whole) - 1, max(1, len(whole) // 60)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        image = image_or_clean_error(read_image, path)
        if kind in PICTURES:  # they may end in something that no voxel needs
            assert image is None or np.array_equal(sitk.GetArrayFromImage(image), expected)
        else:
            assert image is None


@pytest.mark.parametrize("kind", [".nii.gz", ".mha", ".nrrd"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_with_a_checksum_give_an_error_or_the_right_voxels(tmp_path, complete, kind, data):
    content = bytearray(complete[kind])
    start = {".nii.gz": 0, ".mha": content.find(b"LOCAL"), ".nrrd": content.find(b"\n\n")}[kind]  # not the text header
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(start + 10 if start else 0, len(content) - 1))
        content[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path / f"i{kind}"
    path.write_bytes(content)
    image = image_or_clean_error(read_image, path)
    if image is not None:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), random_image(0))


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    garbage=st.binary(max_size=800),
    head=st.integers(0, 400),
    ending=st.sampled_from([*KINDS, ".mhd"]),
    zipped=st.booleans(),
)
def test_garbage_is_an_error_or_an_image(tmp_path, complete, garbage, head, ending, zipped):
    content = complete.get(ending, b"")[:head] + garbage
    path = tmp_path / f"i{ending}"
    path.write_bytes(gzip.compress(content) if zipped else content)
    image = image_or_clean_error(read_image, path)
    assert image is None or sitk.GetArrayFromImage(image).size > 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_label_values_are_mapped(dtype):
    array = np.array([[[0, 205, 42], [85, 0, 0]]]).astype(dtype)
    values = {int(value): number for number, value in enumerate(np.unique(array))}
    mapped, counts = map_labels(image_of(array), Path("label.mha"), values)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mapped), np.unique(array, return_inverse=True)[1].reshape(1, 2, 3))
    assert sitk.GetArrayFromImage(mapped).dtype == np.uint8
    assert counts == {0: 3, 1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize("value", [0.5, -1, np.nan, np.inf, 2])
def test_values_that_are_no_label(value):
    with pytest.raises(ConversionError, match=r"label\.mha holds the value"):
        map_labels(image_of(np.array([[[0, 1, value]]], np.float64)), Path("label.mha"), {0: 0, 1: 1})


def test_frames_of_a_sequence(tmp_path, raw):
    volumes = [image_of(random_image(number), **OBLIQUE) for number in range(3)]
    sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "4d.nii.gz"))
    write(tmp_path / "l.nii.gz", random_label(0).astype(np.uint8), **OBLIQUE)
    cases = [Case("a", [tmp_path / "4d.nii.gz"], tmp_path / "l.nii.gz", frame=0), Case("b", [tmp_path / "4d.nii.gz"], frame=2)]
    dataset = Dataset("A", ["MRI"], {"background": 0, "a": 1})
    split = draw_split(cases, 1)
    folder = convert(dataset, cases, split, raw, 7, processes=1, link=True).folder
    np.testing.assert_array_equal(voxels(folder / "imagesTr" / "a_0000.nii.gz"), random_image(0))
    np.testing.assert_array_equal(voxels(folder / "imagesUn" / "b_0000.nii.gz"), random_image(2))
    assert_same_geometry(folder / "imagesUn" / "b_0000.nii.gz", OBLIQUE)
    # a file that changes is read anew, and one that is too short is noticed
    sitk.WriteImage(sitk.JoinSeries(volumes[:2]), str(tmp_path / "4d.nii.gz"))
    with pytest.raises(ConversionError, match=r"4d\.nii\.gz has shape \(7, 6, 5, 2\) .* volume 3 of a sequence"):
        convert(dataset, cases, split, raw, 8, processes=1)
    write(tmp_path / "4d.nii.gz", random_image(0))
    with pytest.raises(ConversionError, match="volume 1 of a sequence is expected"):
        convert(dataset, cases, split, raw, 8, processes=1)


def test_slices_in_h5_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = array
    image = read_h5(tmp_path / "a.h5", "image", (2, 3), axes="yx")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    assert image.GetSpacing() == (2, 3)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_h5(tmp_path / "a.h5", "image", (2, 3), axes="xy")), array.T)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(">f4", np.float32), (">i2", np.int16), ("bool", np.uint8), ("<f2", np.float32)]
)
def test_kinds_of_numbers_in_h5_files(tmp_path, dtype, expected):
    h5py = pytest.importorskip("h5py")
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = array
    found = sitk.GetArrayFromImage(read_h5(tmp_path / "a.h5", "label", (1, 1), axes="yx"))
    assert found.dtype == expected
    np.testing.assert_array_equal(found, array.astype(expected))


def test_meta_headers_without_blanks(tmp_path):
    """ITK reads them, too."""
    write(tmp_path / "a.mhd", random_image(0))
    header = (tmp_path / "a.mhd").read_text(encoding="utf-8")
    (tmp_path / "a.mhd").write_text(header.replace(" = ", "="), encoding="utf-8")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.mhd")), random_image(0))


def test_an_h5_file_that_promises_more_than_it_can_hold(tmp_path):
    """Reading it would ask for petabytes. An array of zeros, which compresses best of all, is no such file."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", (5, 6, 10**14), "u1", chunks=(5, 6, 100))
        file.create_dataset("label", data=np.zeros((300, 300, 300), np.uint8), compression=9, shuffle=True)
    with pytest.raises(ConversionError, match=r"a\.h5 is damaged \(it promises 3000000000000000 bytes of 'image'"):
        read_h5(tmp_path / "a.h5", "image", (1, 1, 1))
    assert read_h5(tmp_path / "a.h5", "label", (1, 1, 1)).GetSize() == (300, 300, 300)
