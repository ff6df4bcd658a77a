"""Shared fixtures: where the real data is, and a tiny synthetic data set planned and preprocessed by nnU-Net itself."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from nnunet_caml.startup import add_discovery_folder

SHARED = Path(os.environ.get("NNUNET_CAML_SHARED", Path(__file__).resolve().parents[2] / "shared"))
NAME = "Dataset101_Tiny"
TRAINERS = Path(__file__).parent / "trainers"

# a machine that is busy with something else is no fault
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the reference figures and the real data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED} with reference figures and real data (set NNUNET_CAML_SHARED)")
    return SHARED


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converters write: nnU-Net's folder of raw data sets, not there yet; its other folders are not set."""
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return tmp_path / "raw"


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (z, y, x) of two touching blobs in noise, and its label map."""
    rng = np.random.default_rng(seed)
    shape = (20, 24, 22)
    grid = np.stack(np.meshgrid(*(np.arange(s) for s in shape), indexing="ij"), -1)
    label = np.zeros(shape, np.uint8)
    for value, centre in ((1, (10, 8, 11)), (2, (10, 16, 11))):
        distance = np.linalg.norm((grid - np.array(centre) - rng.uniform(-2, 2, 3)) / rng.uniform(0.8, 1.2, 3), axis=-1)
        label[(distance < 4.5) & (label == 0)] = value
    image = 100 * label + rng.normal(0, 25, shape) + 50
    return image.astype(np.int16), label


def write_image(array: np.ndarray, path: Path, spacing: tuple[float, ...] = (1.0, 1.0, 1.5)) -> None:
    """Writes an array (z, y, x) with a spacing (x, y, z) in mm."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[: array.ndim])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def write_raw(folder: Path, labeled: int = 4, unlabeled: int = 5) -> None:
    """A raw data set with cases ``tr_*`` and ``un_*``, and two test cases."""
    for i in range(labeled):
        image, label = blobs(i)
        write_image(image, folder / f"imagesTr/tr_{i}_0000.nii.gz")
        write_image(label, folder / f"labelsTr/tr_{i}.nii.gz")
    for i in range(unlabeled):
        write_image(blobs(100 + i)[0], folder / f"imagesUn/un_{i}_0000.nii.gz")
    for i in range(2):
        write_image(blobs(200 + i)[0], folder / f"imagesTs/ts_{i}_0000.nii.gz")
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "front": 1, "back": 2},
                "numTraining": labeled,
                "file_ending": ".nii.gz",
            }
        )
    )


class Workspace:
    """The three folders of nnU-Net with one data set in them, and commands run there as a user runs them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "raw" / NAME
        self.preprocessed = root / "preprocessed" / NAME
        self.results = root / "results"

    @property
    def variables(self) -> dict[str, str]:
        """nnU-Net's variables; a process each, because every worker imports torch."""
        return {
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": str(TRAINERS),
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
            # lines are there when they are printed
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *command: object, variables: dict[str, str] | None = None) -> subprocess.Popen:
        """Starts a console script of this environment; output is captured, both streams as one."""
        script = Path(sys.executable).parent / str(command[0])
        return subprocess.Popen(
            [str(script), *map(str, command[1:])],
            env={**os.environ, **self.variables, **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            cwd=self.root,
        )

    def run(self, *command: object, status: int | None = 0, variables: dict[str, str] | None = None) -> str:
        """Runs a console script to its end, checks its exit status and gives its output."""
        process = self.start(*command, variables=variables)
        output = process.communicate()[0]
        assert status is None or process.returncode == status, output
        return output

    def call(self, *command: object, variables: dict[str, str] | None = None) -> str:
        """As :meth:`run` without the seconds that starting Python takes, see :mod:`forked`."""
        environment = {**os.environ, **self.variables, **(variables or {})}
        return forked.call([str(part) for part in command], environment, self.root / "command.log")

    def fold(self, trainer: str, fold: object = 0) -> Path:
        """Output folder of a fold of the tiny configuration."""
        return self.results / NAME / f"{trainer}__nnUNetPlans__3d_tiny" / f"fold_{fold}"


def add_tiny_configuration(plans_file: Path) -> None:
    """Adds to the plans what a user with a small machine would add: the same with fewer features."""
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    full = plans["configurations"]["3d_fullres"]
    architecture = json.loads(json.dumps(full["architecture"]))
    stages = architecture["arch_kwargs"]["n_stages"]
    architecture["arch_kwargs"]["features_per_stage"] = [min(4 * 2**i, 16) for i in range(stages)]
    plans["configurations"]["3d_tiny"] = {"inherits_from": "3d_fullres", "architecture": architecture}
    plans_file.write_text(json.dumps(plans), encoding="utf-8")


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A data set planned and preprocessed by nnU-Net's command. Not to be changed: see ``workspace``."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # tests in several processes plan once
        root = root.parent
    workspace = Workspace(root / "planned")
    with FileLock(root / "planned.lock"):
        if not (done := root / "planned.done").exists():
            shutil.rmtree(workspace.root, ignore_errors=True)
            write_raw(workspace.raw)
            command = "nnUNetv2_plan_and_preprocess -d 101 -c 3d_fullres --verify_dataset_integrity -np 1 -npfp 1"
            # nnU-Net 2.8.1 takes this number for torch's threads when it plans, and torch wants at least one
            workspace.call(*command.split(), variables={"nnUNet_n_proc_DA": "1"})
            add_tiny_configuration(workspace.preprocessed / "nnUNetPlans.json")
            done.touch()
    return workspace


@pytest.fixture
def workspace(planned: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of the planned data set to do with as one likes; nnU-Net's variables point to it."""
    shutil.copytree(planned.root, tmp_path, dirs_exist_ok=True)
    copied = Workspace(tmp_path)
    for key, value in copied.variables.items():
        monkeypatch.setenv(key, value)
    add_discovery_folder()  # as every new process does
    return copied


@pytest.fixture
def make_trainer(workspace: Workspace) -> Iterator[Callable]:
    """Makes trainers of the tests' own schedules on the tiny configuration, on the CPU unless told otherwise."""
    from nnunetv2.run.run_training import get_trainer_from_args

    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(
        name: str = "nnUNetTrainerCAMLShort",
        fold: object = 0,
        configuration: str = "3d_tiny",
        resume: bool = False,
        device: str = "cpu",
    ):
        return get_trainer_from_args("101", configuration, fold, name, "nnUNetPlans", resume, torch.device(device))

    yield make
    torch.set_num_threads(threads)
