"""What tests of converters share: running a script, small volumes, reading a data set back, error sentences."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SHARED

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "dataset_conversion"
SHAPE = (5, 6, 7)  # z, y, x
ROLES = (("Tr", "labeled"), ("Un", "unlabeled"), ("Ts", "test"))


def needs_data(name: str) -> pytest.MarkDecorator:
    """Skips a test where a folder of the real data is absent."""
    return pytest.mark.skipif(not (SHARED / "data" / name).is_dir(), reason=f"real data {name} not in NNUNET_CAML_SHARED/data")


# ---------------------------------------------------------------------------------------------------------------- volumes


def rotation(*angles: float) -> np.ndarray:
    """A direction matrix that is parallel to no axis."""
    a, b = angles
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


OBLIQUE = {
    "spacing": (0.7812345678, 0.78, 3.3000001),
    "origin": (-123.456789, 34.56789, -987.654321),
    "direction": rotation(0.3, -0.7).ravel().tolist(),
}


def image_of(array: np.ndarray, spacing=(1, 1, 1), origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)) -> sitk.Image:
    """A volume from an array (z, y, x)."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def write(path: Path, array: np.ndarray, **geometry: object) -> Path:
    """Writes an array (z, y, x), compressed where the format can be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image_of(array, **geometry), str(path), True)  # type: ignore[arg-type]
    return path


def voxels(path: Path) -> np.ndarray:
    """The array (z, y, x) in a file."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def random_image(seed: int, dtype: type = np.int16) -> np.ndarray:
    """Values from 0 to 99."""
    return np.random.default_rng(seed).integers(0, 100, SHAPE).astype(dtype)


def random_label(seed: int, values: int | list[int] = 2) -> np.ndarray:
    """The given values, or as many from 0 on."""
    return np.random.default_rng(100 + seed).choice(np.arange(values) if isinstance(values, int) else values, SHAPE)


def write_h5(path: Path, image: np.ndarray, label: np.ndarray) -> Path:
    """One case as the literature shares it; skips the test without h5py."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image, compression="gzip")
        file.create_dataset("label", data=label, compression="gzip")
    return path


def replace_in_h5(path: Path, key: str, array: np.ndarray | None) -> None:
    """Puts another array into the place of one, or nothing."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "a") as file:
        if key in file:
            del file[key]
        if array is not None:
            file[key] = array


def write_lists(folder: Path, ending: str = ".list", **lists: Sequence[str]) -> Path:
    """Writes lists of cases, one a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, cases in lists.items():
        (folder / f"{name}{ending}").write_text("\n".join(cases), encoding="utf-8")
    return folder


# ---------------------------------------------------------------------------------------------------------------- scripts


def run(script: str | Path, *arguments: object) -> None:
    """Runs a script in this process, which is quicker than :func:`run_as_user`."""
    path = SCRIPTS / script
    before = sys.argv, list(sys.path)
    sys.argv = [str(path), *map(str, arguments)]
    sys.path.insert(0, str(path.parent))
    if "-np" not in sys.argv:
        sys.argv += ["-np", "1"]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before


def run_as_user(script: str | Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process of its own."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", timeout=120)


@contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """A converter as a module, which is forgotten afterwards together with the converters that it imports."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))
        for new in set(sys.modules) - before:
            if (SCRIPTS / f"{new}.py").is_file():
                sys.modules.pop(new)


def sentence(capsys, script: str, *arguments: object) -> str:
    """Runs a script that has to fail, and returns its complaint."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(script, *arguments)
    output = capsys.readouterr()
    assert stopped.value.code == 1, output.err
    assert output.err.startswith(f"{script}: ")
    assert output.err.count("\n") == 1
    return output.err


# --------------------------------------------------------------------------------------------------------- the data set


def nothing_left(raw: Path) -> bool:
    """Whether no data set was written, not even a part of one."""
    return not raw.exists() or list(raw.iterdir()) == []


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def split_of(folder: Path) -> dict:
    """What ``split.json`` says."""
    return json.loads((folder / "split.json").read_text(encoding="utf-8"))


def dataset_json(folder: Path) -> dict:
    """What ``dataset.json`` says."""
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def patients_of(names: Iterable[str]) -> set[int]:
    """The patients' numbers in identifiers such as ``patient099_frame01`` and ``10001_1000002``."""
    return {int(re.sub(r"\D*(\d+)_.*", r"\1", name)) for name in names}


def verify(folder: Path, monkeypatch) -> None:
    """nnU-Net's own check, with threads in the place of its processes.

    Some of those take seconds to start, and others are forked, which can hang in a process that has threads.
    """
    from nnunetv2.experiment_planning import verify_dataset_integrity as module
    from nnunetv2.utilities import utils

    with monkeypatch.context() as patch:
        patch.setattr(utils, "Pool", ThreadPool)
        threads = SimpleNamespace(Pool=ThreadPool)
        patch.setattr(module, "multiprocessing", SimpleNamespace(get_context=lambda method: threads))
        module.verify_dataset_integrity(str(folder), 1)


def assert_same_geometry(path: Path, geometry: dict) -> None:
    """The file lies where it should, as exactly as NIfTI can say it."""
    image = sitk.ReadImage(str(path))
    np.testing.assert_allclose(image.GetSpacing(), geometry["spacing"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(image.GetDirection(), geometry["direction"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), geometry["origin"], rtol=1e-6, atol=1e-6)


def check_converted(target: Path, image_of: Callable[[str], np.ndarray], label_of: Callable[[str], np.ndarray]) -> None:
    """Every file in a data set of one channel is what the source holds, and unlabelled cases have no label.

    Args:
        target: The data set.
        image_of: The source's image of a case.
        label_of: The source's label of a case, with the values that it should have.
    """
    split = split_of(target)
    for folder, role in ROLES:
        for name in split[role]:
            written, expected = voxels(target / f"images{folder}" / f"{name}_0000.nii.gz"), image_of(name)
            assert written.dtype == expected.dtype
            np.testing.assert_array_equal(written, expected)
            label = target / f"labels{folder}" / f"{name}.nii.gz"
            assert label.exists() == (role != "unlabeled")
            if label.exists():
                np.testing.assert_array_equal(voxels(label), label_of(name))
    files = [path for folder, _ in ROLES for path in (target / f"images{folder}").glob("*")]
    assert len(files) == sum(len(split[role]) for _, role in ROLES)
