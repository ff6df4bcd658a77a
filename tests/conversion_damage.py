"""Files that are damaged on purpose, and what a converter may do with them."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_helpers import nothing_left, replace_in_h5, run, sentence, voxels

from nnunet_caml.conversion import ConversionError, Dataset, read_image

KINDS = ["missing", "empty", "truncated", "garbage", "other bytes", "other shape", "other value", "not finite"]
Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def rewritten(path: Path, change: Damage, rng: np.random.Generator) -> None:
    """Changes the voxels in a file of any of these formats; text files stay as they are."""
    if path.suffix == ".h5":
        import h5py

        key = str(rng.choice(["image", "label"]))
        with h5py.File(path) as file:
            array = file[key][()]
        replace_in_h5(path, key, change(array, rng))
    elif path.name.endswith((".nii.gz", ".mha", ".mhd", ".nrrd")):
        image = sitk.ReadImage(str(path))
        changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image), rng), isVector=False)
        changed.SetSpacing(image.GetSpacing())
        changed.SetOrigin(image.GetOrigin())
        changed.SetDirection(image.GetDirection())
        sitk.WriteImage(changed, str(path))


def break_file(path: Path, kind: str, rng: np.random.Generator) -> None:
    """Breaks a file in one of the ways in :data:`KINDS`."""
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: rng.integers(len(content))])
    elif kind == "garbage":
        path.write_bytes(rng.bytes(len(content)))
    elif kind == "other bytes":
        damaged = bytearray(content)
        for position in rng.integers(len(content), size=3):
            damaged[position] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
    elif kind == "other shape":
        rewritten(path, lambda array, rng: array[..., : -int(rng.integers(1, 3))], rng)
    elif kind == "other value":
        rewritten(path, lambda array, rng: np.where(rng.random(array.shape) < 0.1, 9, array).astype(array.dtype), rng)
    elif kind == "not finite":
        rewritten(path, lambda array, rng: np.where(rng.random(array.shape) < 0.1, np.nan, array).astype(np.float32), rng)
    else:
        raise AssertionError(kind)


def fuzz(
    capsys: pytest.CaptureFixture,
    source: Path,
    raw: Path,
    command: tuple[object, ...],
    check: Callable[[Path, Path], None],
    rounds: int = 24,
) -> None:
    """Breaks one file at a time; accepts one sentence that leaves nothing behind, or a data set that is right.

    Args:
        capsys: pytest's fixture.
        source: A complete source folder.
        raw: Where data sets go.
        command: Script and arguments, without the source.
        check: Compares a data set with its source, as it is now.
        rounds: How many files to break, with each kind of :data:`KINDS` in turn.
    """
    rng = np.random.default_rng(len(str(command[0])))
    files = sorted(path for path in source.rglob("*") if path.is_file())
    outcomes: Counter[str] = Counter()
    for number in range(rounds):
        path = files[rng.integers(len(files))]
        kind = KINDS[number % len(KINDS)]
        backup = path.read_bytes()
        shutil.rmtree(raw, ignore_errors=True)
        break_file(path, kind, rng)
        capsys.readouterr()
        status: object = 0
        try:
            run(str(command[0]), source, *command[1:])
        except SystemExit as stopped:
            status = stopped.code
        complaint = capsys.readouterr().err
        if status:
            assert (status, complaint.count("\n")) == (1, 1), (kind, path, complaint)
            assert complaint.startswith(f"{command[0]}: "), (kind, path, complaint)
            # what is wrong with a list shows in the cases that it names
            stem = path.name.partition(".")[0].partition("_slice")[0]
            assert stem in complaint or path.suffix in (".list", ".raw"), (kind, path, complaint)
            assert nothing_left(raw)
        else:
            check(source, next(raw.iterdir()))
        outcomes["error" if status else "right"] += 1
        path.write_bytes(backup)
    assert outcomes["error"] > rounds / 4, outcomes  # or nothing was tested
    shutil.rmtree(raw, ignore_errors=True)
    run(str(command[0]), source, *command[1:])
    check(source, next(raw.iterdir()))


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


def image_or_clean_error(read: Callable[[Path], sitk.Image], path: Path) -> sitk.Image | None:
    """The image, or ``None`` after one sentence that names the file or folder; anything else is raised."""
    try:
        return read(path)
    except ConversionError as error:
        if str(path) not in str(error) or "\n" in str(error):
            raise AssertionError(str(error)) from error
    return None


def fuzz_compressed(
    capsys: pytest.CaptureFixture, raw: Path, script: str, arguments: Sequence[object], files: Sequence[Path], rounds: int
) -> None:
    """Damages one ``.nii.gz`` file at a time, which has a checksum.

    Each round stops the whole conversion with a sentence or, where the checksum says that nothing is lost, changes nothing.

    Args:
        capsys: pytest's fixture.
        raw: Where data sets go; empty.
        script: The converter.
        arguments: For it, with the source.
        files: Those to damage.
        rounds: How often.
    """
    arguments = [*arguments, "--overwrite"]
    run(script, *arguments)
    (target,) = raw.iterdir()
    expected = {path.name: voxels(path) for path in target.rglob("*.nii.gz")}
    for seed in range(rounds):
        path = files[seed % len(files)]
        content = path.read_bytes()
        path.write_bytes(damaged(content, seed))
        if image_or_clean_error(read_image, path) is None:
            assert str(path) in sentence(capsys, script, *arguments)
        else:
            run(script, *arguments)
        for written in target.rglob("*.nii.gz"):  # a failed run leaves the data set that was there
            np.testing.assert_array_equal(voxels(written), expected[written.name])
        path.write_bytes(content)


def fuzz_h5(dataset: Dataset, path: Path, rounds: int = 80) -> None:
    """Damages a file of image and label; each reader gives one sentence or a volume, for HDF5 has no checksum of its own."""
    content = path.read_bytes()
    for seed in range(rounds):
        path.write_bytes(damaged(content, seed))
        for read in (dataset.read_image, dataset.read_label):
            image = image_or_clean_error(read, path)
            assert image is None or image.GetDimension() == 3
