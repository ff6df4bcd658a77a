"""Pancreas-CT as DICOM series with labels whose headers lie, and as the literature's h5 files."""

import itertools
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_conversion_errors import nothing_left, sentence
from test_conversion_layouts import (
    SCRIPTS,
    image_of,
    raw,  # noqa: F401
    rotation,
    run,
    run_as_user,
    split_of,
    verify,
    voxels,
    write,
)

from nnunet_caml.conversion import ConversionError

SHAPE = (8, 12, 14)  # z, y, x
GEOMETRY = {"spacing": (0.7, 0.75, 1.25), "origin": (-100.5, 80.25, -30.5)}
FLIPS = list(itertools.product((False, True), repeat=3))


@pytest.fixture
def script(monkeypatch):
    """The converter as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import pancreas_ct

    yield pancreas_ct
    sys.modules.pop("pancreas_ct")


def organ() -> np.ndarray:
    """A shape without any symmetry, away from the middle."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 2:6, 2:8] = 1
    mask[3:5, 3:5, 7:11] = 1
    return mask


def scan(seed: int, contrast: float = 120) -> np.ndarray:
    """Noisy HU with an organ brighter than the fat around it."""
    noise = np.random.default_rng(seed).normal(-80, 20, SHAPE)
    return np.rint(noise + contrast * organ()).astype(np.int16)


def write_series(folder: Path, array: np.ndarray, case: int = 1, **options) -> Path:
    """Real DICOM slices, whose names are in the order opposite to their positions."""
    spacing, origin = (options.get(key, GEOMETRY[key]) for key in ("spacing", "origin"))
    direction = np.array(options.get("direction", np.eye(3)), float).reshape(3, 3)
    uid, slope = f"1.2.826.0.1.3680043.2.1125.{case}", options.get("slope", "1")
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, plane in enumerate(array):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing(spacing[:2])
        position = np.array(origin) + direction[:, 2] * spacing[2] * number
        tags = {
            "0008|0060": "CT",
            "0010|0010": "Doe^Jane",
            "0020|000d": f"{uid}.1",
            "0020|000e": f"{uid}.{options.get('series', 2)}",
            "0008|0018": f"{uid}.3.{number + 1}",
            "0020|0013": str(len(array) - number),
            "0020|0032": "\\".join(repr(float(value)) for value in position),
            "0020|0037": "\\".join(repr(float(value)) for value in direction[:, :2].T.ravel()),
            "0028|1052": options.get("intercept", "-1024"),
            "0028|1053": slope,
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"1-{len(array) - number:03d}.dcm"))
        writer.Execute(image)
    return folder


def pancreas_ct(source: Path, cases: tuple[int, ...] = (57, 18, 62, 50), labels: bool = True) -> Path:
    """The archive's layout: each label lies another way, and its header has no origin."""
    for number in cases:
        folder = source / "Pancreas-CT" / f"PANCREAS_{number:04d}" / "11-24-2015" / f"Pancreas-{number}"
        write_series(folder, scan(number), number)
        if labels:
            stored = np.flip(organ(), [axis for axis in range(3) if number >> axis & 1])
            path = source / "TCIA_pancreas_labels-02-05-2017" / f"label{number:04d}.nii.gz"
            write(path, stored, spacing=GEOMETRY["spacing"], direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return source


def lists(folder: Path, train: tuple[int, ...] = (57, 18, 62), test: tuple[int, ...] = (50,)) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.list").write_text("\n".join(f"image{number:04d}" for number in train))
    (folder / "test.list").write_text("\n".join(f"image{number:04d}" for number in test))
    return folder


def pancreas_h5(source: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    (source / "Pancreas_h5").mkdir(parents=True)
    for number in (57, 18, 62, 50):
        with h5py.File(source / "Pancreas_h5" / f"image{number:04d}_norm.h5", "w") as file:  # axes x, y, z
            file.create_dataset("image", data=scan(number).transpose().astype(np.float32) / 7, compression="gzip")
            file.create_dataset("label", data=organ().transpose().astype(np.float32), compression="gzip")
    return lists(source)


# -------------------------------------------------------------------------------------------------------------- layouts


def test_pancreas_ct(tmp_path, raw, monkeypatch):  # noqa: F811
    source = pancreas_ct(tmp_path / "source")
    arguments = (source, "--dataset-id", 61, "--labeled", 1, "--lists", lists(tmp_path / "lists"), "--preview", "-np", 2)
    done = run_as_user("pancreas_ct.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    target = raw / "Dataset061_PancreasCT"
    split = split_of(target)
    assert split["labeled"] == ["PANCREAS_0057"]
    assert split["unlabeled"] == ["PANCREAS_0018", "PANCREAS_0062"]
    assert split["test"] == ["PANCREAS_0050"]
    assert split["seed"] is None
    for role, folder in (("labeled", "Tr"), ("unlabeled", "Un"), ("test", "Ts")):
        for name in split[role]:
            image = sitk.ReadImage(str(target / f"images{folder}" / f"{name}_0000.nii.gz"))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan(int(name[-4:])))
            assert image.GetPixelID() == sitk.sitkInt16
            np.testing.assert_allclose(image.GetSpacing(), GEOMETRY["spacing"], atol=1e-6)
            np.testing.assert_allclose(image.GetOrigin(), GEOMETRY["origin"], atol=1e-6)
            label = target / f"labels{folder}" / f"{name}.nii.gz"
            assert label.exists() == (folder != "Un")
            if label.exists():
                np.testing.assert_array_equal(voxels(label), organ())
                np.testing.assert_allclose(sitk.ReadImage(str(label)).GetOrigin(), GEOMETRY["origin"], atol=1e-6)
    assert b"Doe" not in b"".join(path.read_bytes() for path in target.rglob("*.json"))
    assert json.loads((target / "dataset.json").read_text())["channel_names"] == {"0": "CT"}
    verify(target, monkeypatch)


def test_built_in_lists(tmp_path, raw, capsys, script):  # noqa: F811
    assert (len(script.TRAIN), len(script.TEST)) == (62, 20)
    assert sorted(script.TRAIN + script.TEST) == list(range(1, 83))
    source = pancreas_ct(tmp_path / "source")
    complaint = sentence(capsys, "pancreas_ct.py", source, "--dataset-id", 61, "--labeled", 6, "-np", 1)
    assert "label0031.nii.gz does not exist" in complaint
    assert nothing_left(raw)
    # three of the training cases and one of the test cases are there
    run("pancreas_ct.py", source, "--dataset-id", 61, "--labeled", 2, "--skip-broken")
    split = split_of(raw / "Dataset061_PancreasCT")
    assert [split[role] for role in ("labeled", "unlabeled", "test")] == [
        ["PANCREAS_0018", "PANCREAS_0057"],
        ["PANCREAS_0062"],
        ["PANCREAS_0050"],
    ]
    assert len(split["left_out"]) == 82 - 4 - 2
    assert "PANCREAS_0025 is left out: the archive has withdrawn it." in capsys.readouterr().out


def test_withdrawn_cases_count_where_they_are_there(tmp_path, raw):  # noqa: F811
    source = pancreas_ct(tmp_path / "source", (70, 18))
    run("pancreas_ct.py", source, "--dataset-id", 61, "--labeled", 1, "--lists", lists(tmp_path / "l", (70,), (18,)))
    assert split_of(raw / "Dataset061_PancreasCT")["labeled"] == ["PANCREAS_0070"]


def test_pancreas_h5(tmp_path, raw, monkeypatch):  # noqa: F811
    source = pancreas_h5(tmp_path / "source")
    run("pancreas_h5.py", source, "--dataset-id", 62, "--labeled", 2, "--preview")
    target = raw / "Dataset062_Pancreas"
    split = split_of(target)
    assert split["labeled"] == ["image0018", "image0057"]
    assert split["unlabeled"] == ["image0062"]
    assert split["test"] == ["image0050"]
    image = sitk.ReadImage(str(target / "imagesUn" / "image0062_0000.nii.gz"))
    assert image.GetSpacing() == (1, 1, 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan(62).astype(np.float32) / 7)
    np.testing.assert_array_equal(voxels(target / "labelsTr" / "image0018.nii.gz"), organ())
    assert voxels(target / "labelsTr" / "image0018.nii.gz").dtype == np.uint8
    verify(target, monkeypatch)


def test_unlabeled_from(tmp_path, raw):  # noqa: F811
    source = pancreas_ct(tmp_path / "source")
    write_series(tmp_path / "more" / "A" / "study", scan(1))
    arguments = ("--dataset-id", 61, "--labeled", 3, "--lists", lists(tmp_path / "lists"), "--unlabeled-from")
    run("pancreas_ct.py", source, *arguments, tmp_path / "more")
    assert split_of(raw / "Dataset061_PancreasCT")["unlabeled"] == ["A"]
    write(tmp_path / "images" / "B.nii.gz", scan(2))
    run("pancreas_ct.py", source, *arguments, tmp_path / "images", "--overwrite")
    assert split_of(raw / "Dataset061_PancreasCT")["unlabeled"] == ["B"]
    h5 = pancreas_h5(tmp_path / "h5")
    more = pancreas_h5(tmp_path / "more_h5") / "Pancreas_h5"
    for path in more.iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    run("pancreas_h5.py", h5, "--dataset-id", 62, "--labeled", 3, "--unlabeled-from", more)
    assert len(split_of(raw / "Dataset062_Pancreas")["unlabeled"]) == 4


# ---------------------------------------------------------------------------------------------------------- orientation


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


def test_label_flip_option(tmp_path, raw, capsys):  # noqa: F811
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


# ------------------------------------------------------------------------------------------------------------ bad input


def break_series(kind: str, folder: Path) -> None:
    files = sorted(folder.rglob("*.dcm"))
    middle = files[len(files) // 2]
    if kind == "missing slice":
        middle.unlink()
    elif kind == "truncated":
        middle.write_bytes(middle.read_bytes()[:-1])
    elif kind == "empty":
        middle.write_bytes(b"")
    elif kind == "garbage":
        middle.write_bytes(b"DICM" * 100)
    elif kind == "all garbage":
        for path in files:
            path.write_bytes(b"DICM" * 100)
    elif kind == "slice there twice":
        shutil.copy(middle, middle.with_name("copy.dcm"))
    elif kind == "two series":
        write_series(files[0].parent / "other", scan(9), 9)
        for path in (files[0].parent / "other").iterdir():
            path.rename(files[0].with_name(f"2-{path.name}"))
    elif kind == "two folders":
        write_series(folder / "other", scan(9), 9)
    elif kind == "no files":
        shutil.rmtree(folder)
        folder.mkdir()
    elif kind == "another shape":
        write_series(folder / "other", scan(9)[:, :, :-1], 57)
        (folder / "other" / "1-004.dcm").rename(next(path for path in files if path.name == "1-004.dcm"))
        shutil.rmtree(folder / "other")
    elif kind == "one slice":
        for path in files[1:]:
            path.unlink()
    else:
        raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing slice", "2.5 mm apart, but most slices 1.25 mm: a slice is missing"),
        ("truncated", "1-005.dcm is not a readable DICOM image"),
        ("empty", "1-005.dcm is not a readable DICOM image"),
        ("garbage", "1-005.dcm is not a readable DICOM image"),
        ("all garbage", "holds 0 DICOM series"),
        ("slice there twice", "there twice"),
        ("two series", "holds 2 DICOM series"),
        ("two folders", "holds DICOM files in"),
        ("no files", "holds no DICOM files"),
        ("another shape", "differs from"),
        ("one slice", "is the only slice"),
    ],
)
def test_broken_series(tmp_path, raw, capsys, kind, words):  # noqa: F811
    source = pancreas_ct(tmp_path / "source")
    break_series(kind, source / "Pancreas-CT" / "PANCREAS_0057")
    arguments = (source, "--dataset-id", 61, "--labeled", 2, "--lists", lists(tmp_path / "lists"))
    assert words in sentence(capsys, "pancreas_ct.py", *arguments)
    assert nothing_left(raw)
    run("pancreas_ct.py", *arguments, "--skip-broken")
    assert split_of(raw / "Dataset061_PancreasCT")["left_out"] == ["PANCREAS_0057"]


def test_last_slice_missing_is_noticed_by_the_label(tmp_path, raw, capsys):  # noqa: F811
    source = pancreas_ct(tmp_path / "source")
    next((source / "Pancreas-CT" / "PANCREAS_0057").rglob("1-001.dcm")).unlink()
    arguments = (source, "--dataset-id", 61, "--labeled", 2, "--lists", lists(tmp_path / "lists"))
    complaint = sentence(capsys, "pancreas_ct.py", *arguments)
    assert "has shape (14, 12, 7)" in complaint
    assert "label0057.nii.gz has (14, 12, 8)" in complaint


@pytest.mark.parametrize("kind", ["value", "spacing", "truncated", "missing", "twice", "four axes"])
def test_broken_label(tmp_path, raw, capsys, kind):  # noqa: F811
    source = pancreas_ct(tmp_path / "source")
    path = source / "TCIA_pancreas_labels-02-05-2017" / "label0057.nii.gz"
    stored = voxels(path)
    if kind == "value":
        write(path, 2 * stored, spacing=GEOMETRY["spacing"])
    elif kind == "spacing":
        write(path, stored, spacing=(0.7, 0.75, 1.0))
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "missing":
        path.unlink()
    elif kind == "twice":
        shutil.copy(path, source / path.name)
    elif kind == "four axes":
        sitk.WriteImage(sitk.JoinSeries([image_of(stored)] * 2), str(path))
    words = {
        "value": "label0057.nii.gz holds the value 2 where a label of [0, 1] is expected",
        "spacing": "label0057.nii.gz has the spacing",
        "truncated": "label0057.nii.gz is truncated or damaged",
        "missing": "label0057.nii.gz does not exist",
        "twice": "are labels of the same case",
        "four axes": "has 4 axes",
    }[kind]
    arguments = (source, "--dataset-id", 61, "--labeled", 2, "--lists", lists(tmp_path / "lists"))
    assert words in sentence(capsys, "pancreas_ct.py", *arguments)
    assert nothing_left(raw)


def test_wrong_layouts(tmp_path, raw, capsys):  # noqa: F811
    (tmp_path / "empty").mkdir()
    arguments = ("--dataset-id", 61, "--labeled", 2)
    assert "holds no folder PANCREAS_0001" in sentence(capsys, "pancreas_ct.py", tmp_path / "empty", *arguments)
    assert "has no folder 'Pancreas_h5'" in sentence(capsys, "pancreas_h5.py", tmp_path / "empty", *arguments)
    source = pancreas_ct(tmp_path / "source", (57,))
    (lists(tmp_path / "lists") / "test.list").write_text("case one\n")
    complaint = sentence(capsys, "pancreas_ct.py", source, *arguments, "--lists", tmp_path / "lists")
    assert "names such as image0001" in complaint
    shutil.copytree(source / "Pancreas-CT" / "PANCREAS_0057", source / "again" / "PANCREAS_0057")
    complaint = sentence(capsys, "pancreas_ct.py", source, *arguments, "--lists", lists(tmp_path / "lists", (57,), (50,)))
    assert "Two cases are called PANCREAS_0057" in complaint
    complaint = sentence(capsys, "pancreas_ct.py", source, *arguments, "--unlabeled-from", tmp_path / "nowhere")
    assert "nowhere is no folder" in complaint
    h5 = pancreas_h5(tmp_path / "h5")
    (h5 / "test.list").unlink()
    assert "test.list does not exist" in sentence(capsys, "pancreas_h5.py", h5, *arguments)
    assert nothing_left(raw)


def damaged(content: bytes, seed: int) -> bytes:
    """Truncated, overwritten or shuffled."""
    rng = np.random.default_rng(seed)
    kind, place = seed % 4, int(rng.integers(len(content)))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return rng.bytes(place)
    if kind == 2:
        return content[:place] + rng.bytes(40) + content[place + 40 :]
    changed = bytearray(content)
    for position in rng.integers(len(content), size=5):
        changed[position] ^= int(rng.integers(1, 256))
    return bytes(changed)


def image_or_clean_error(read: Callable[[], sitk.Image], path: Path) -> sitk.Image | None:
    """The image, or ``None`` after one sentence that names the file or its folder; anything else is raised."""
    try:
        return read()
    except ConversionError as error:
        if str(path) not in str(error) or "\n" in str(error):
            raise AssertionError(str(error)) from error
    return None


def test_fuzzed_dicom_is_an_error_or_a_whole_series(tmp_path, script):
    folder = write_series(tmp_path / "series", scan(3))
    files = sorted(folder.iterdir())
    for seed in range(120):
        path = files[seed % len(files)]
        content = path.read_bytes()
        path.write_bytes(damaged(content, seed))
        image = image_or_clean_error(lambda: script.read_series(folder), folder)
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
        label = image_or_clean_error(lambda: script.read_label(path, {str(path): folder}, "auto"), path)
        if label is not None:
            np.testing.assert_array_equal(sitk.GetArrayFromImage(label), organ())


def test_fuzzed_h5_is_an_error_or_a_volume(tmp_path, script):
    from pancreas_h5 import DATASET

    path = pancreas_h5(tmp_path / "source") / "Pancreas_h5" / "image0057_norm.h5"
    content = path.read_bytes()
    for seed in range(80):
        path.write_bytes(damaged(content, seed))
        for reader in (DATASET.read_image, DATASET.read_label):
            image = image_or_clean_error(partial(reader, path), path)
            assert image is None or image.GetDimension() == 3  # HDF5 has no checksum of its own
    sys.modules.pop("pancreas_h5")
