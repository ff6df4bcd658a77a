"""Which way a label of Pancreas-CT lies, whatever its header says."""

import itertools
from collections.abc import Iterator
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_damage import damaged, image_or_clean_error
from conversion_helpers import image_of, imported, rotation, run, split_of, voxels, write
from conversion_pancreas import FLIPS, GEOMETRY, SHAPE, lists, organ, pancreas_ct, scan, write_series

from nnunet_caml.conversion import ConversionError


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """The converter as a module."""
    with imported("pancreas_ct") as module:
        yield module


@pytest.mark.parametrize("flip", FLIPS)
def test_every_flip_is_found_whatever_the_header_says(tmp_path, script, flip):
    folder = write_series(tmp_path / "series", scan(3))
    stored = np.flip(organ(), [axis for axis in range(3) if flip[::-1][axis]])
    for header in ((False, False, False), (True, True, False), (False, True, True)):
        direction = np.diag([-1.0 if flipped else 1.0 for flipped in header]).ravel().tolist()
        path = write(tmp_path / "label.nii.gz", stored, spacing=GEOMETRY["spacing"], direction=direction)
        label = script.read_label(path, {str(path): folder}, "auto")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(label), organ())
        assert label.GetOrigin() == script.read_series(folder).GetOrigin()


def test_axes_in_another_order_are_found_by_the_header(tmp_path, script):
    folder = write_series(tmp_path / "series", scan(3))
    whole = image_of(organ(), spacing=GEOMETRY["spacing"])
    path = tmp_path / "label.nii.gz"
    for order in itertools.permutations(range(3)):
        sitk.WriteImage(sitk.PermuteAxes(whole, order), str(path))
        label = script.read_label(path, {str(path): folder}, "auto")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(label), organ())


def test_oblique_series(tmp_path, script):
    direction = rotation(0.3, -0.7)
    folder = write_series(tmp_path / "series", scan(3), direction=direction)
    image = script.read_series(folder)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan(3))
    np.testing.assert_allclose(image.GetDirection(), direction.ravel(), atol=1e-6)
    np.testing.assert_allclose(image.GetSpacing(), GEOMETRY["spacing"], atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), GEOMETRY["origin"], atol=1e-6)
    path = write(tmp_path / "l.nii.gz", organ()[:, ::-1], spacing=GEOMETRY["spacing"], direction=direction.ravel().tolist())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(script.read_label(path, {str(path): folder}, "auto")), organ())
    write(path, organ(), spacing=GEOMETRY["spacing"])
    with pytest.raises(ConversionError, match="axes that are not parallel"):
        script.read_label(path, {str(path): folder}, "auto")


@pytest.mark.parametrize("kind", ["no contrast", "two candidates", "empty", "full"])
def test_an_image_that_leaves_doubt_is_an_error(tmp_path, script, kind):
    organs = 0 * organ() if kind == "no contrast" else np.maximum(120 * organ(), 100 * organ()[::-1])
    folder = write_series(tmp_path / "series", scan(3, contrast=0) + organs.astype(np.int16))
    stored = {"empty": 0 * organ(), "full": 0 * organ() + 1}.get(kind, organ())
    header = {"spacing": GEOMETRY["spacing"], "direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}
    path = write(tmp_path / "label0001.nii.gz", stored, **header)
    with pytest.raises(ConversionError, match=r"label0001\.nii\.gz") as error:
        script.read_label(path, {str(path): folder}, "auto")
    assert ("--label-flip" in str(error.value)) == (kind in ("no contrast", "two candidates"))
    # the user may know
    label = script.read_label(path, {str(path): folder}, "yz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), stored[::-1, ::-1])
    # the header settles what the image leaves open between two candidates
    if kind == "two candidates":
        write(path, organ(), spacing=GEOMETRY["spacing"])
        np.testing.assert_array_equal(sitk.GetArrayFromImage(script.read_label(path, {str(path): folder}, "auto")), organ())


def test_contrast_is_the_mean_fall_across_the_surface(script):
    """Compared with a loop over all pairs of neighbours."""
    rng = np.random.default_rng(0)
    image, mask = rng.integers(-200, 300, (4, 5, 6)), rng.random((4, 5, 6)) < 0.3
    mask[:, :, 4:] = False
    found = script.contrasts(image, mask)
    clipped = np.clip(image, *script.WINDOW_HU)
    for flip in FLIPS:
        flipped = np.flip(mask, [axis for axis in range(3) if flip[::-1][axis]])
        falls = []
        for index in np.argwhere(flipped):
            for axis, step in itertools.product(range(3), (-1, 1)):
                other = index.copy()
                other[axis] += step
                if 0 <= other[axis] < image.shape[axis] and not flipped[tuple(other)]:
                    falls.append(clipped[tuple(index)] - clipped[tuple(other)])
        assert found[flip] == pytest.approx(np.mean(falls))


def test_label_flip_option(tmp_path, raw, capsys):
    source = pancreas_ct(tmp_path / "source", (57, 50))
    arguments = (source, "--dataset-id", 61, "--labeled", 1, "--lists", lists(tmp_path / "lists", (57,), (50,)))
    run("pancreas_ct.py", *arguments, "--label-flip", "none")
    target = raw / "Dataset061_PancreasCT"
    np.testing.assert_array_equal(voxels(target / "labelsTr" / "PANCREAS_0057.nii.gz"), np.flip(organ(), 0))
    assert "--label-flip none" in split_of(target)["command"]
    for wrong in ("w", "xx", ""):
        with pytest.raises(SystemExit):
            run("pancreas_ct.py", *arguments, "--label-flip", wrong)
    assert "expected 'auto', 'none', or axes" in capsys.readouterr().err


def test_fuzzed_dicom_is_an_error_or_a_whole_series(tmp_path, script):
    folder = write_series(tmp_path / "series", scan(3))
    files = sorted(folder.iterdir())
    for seed in range(120):
        path = files[seed % len(files)]
        content = path.read_bytes()
        path.write_bytes(damaged(content, seed))
        image = image_or_clean_error(script.read_series, folder)
        if image is not None:  # DICOM has no checksum: a voxel or a name may differ, but the volume stands
            assert seed % 4 != 0  # truncated
            assert image.GetSize() == SHAPE[::-1]
            np.testing.assert_allclose(image.GetSpacing()[:2], GEOMETRY["spacing"][:2], rtol=0.01)
        path.write_bytes(content)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(script.read_series(folder)), scan(3))


def test_fuzzed_labels_are_an_error_or_right(tmp_path, script):
    folder = write_series(tmp_path / "series", scan(3))
    path = write(tmp_path / "label0001.nii.gz", organ()[::-1], spacing=GEOMETRY["spacing"])
    content = path.read_bytes()
    for seed in range(60):
        path.write_bytes(damaged(content, seed))
        label = image_or_clean_error(partial(script.read_label, folders={str(path): folder}, flip="auto"), path)
        if label is not None:
            np.testing.assert_array_equal(sitk.GetArrayFromImage(label), organ())
