"""The support table of the README: plan, preprocess, train, validate and predict, a row each, through the command line."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import NAME, Workspace, blobs, write_image
from skimage import io

TRAINER = "nnUNetTrainerCAMLOneEpoch"
PLAIN = {"background": 0, "front": 1, "back": 2}


@dataclass(frozen=True)
class Row:
    """A small data set and what to train on it.

    Attributes:
        configuration: As for ``-c``.
        planner: Name of the experiment planner and of its plans.
        labels: For ``dataset.json``.
        further: More of ``dataset.json``.
        channels: Names of the channels.
        relabel: Changes the label map of case ``i``.
        ending: Of the files.
        case: Gives an image and a label map for a seed.
        fold: To train.
        labeled: Number of labelled cases.
        plans: Changes the plans' configuration.
    """

    configuration: str = "3d_fullres"
    planner: tuple[str, str] = ("ExperimentPlanner", "nnUNetPlans")
    labels: dict[str, Any] = field(default_factory=lambda: PLAIN)
    further: dict[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] = ("MRI",)
    relabel: Callable[[np.ndarray, int], np.ndarray] = lambda label, i: label
    ending: str = ".nii.gz"
    case: Callable[[int], tuple[np.ndarray, np.ndarray]] = blobs
    spacing: tuple[float, ...] = (1.0, 1.0, 1.5)
    fold: object = 0
    labeled: int = 4
    plans: dict[str, Any] = field(default_factory=dict)


def on_black(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As nnU-Net's masked normalisation wants it: much of the image is 0, of which cropping leaves a corner."""
    image, label = blobs(seed)
    image[:, :3] = 0
    image[:8, :12, :11] = 0
    return image, label


def thick_slices(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Few thick slices of many pixels."""
    image, label = blobs(seed)
    return np.kron(image[::3], np.ones((1, 2, 2), image.dtype)), np.kron(label[::3], np.ones((1, 2, 2), label.dtype))


def slices(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One slice, 8 bit."""
    image, label = blobs(seed)
    return np.clip(image[10], 0, 255).astype(np.uint8), label[10]


def many(label: np.ndarray, i: int) -> np.ndarray:
    """Thirteen classes, of which two are in no case, and some are missing in this one."""
    stripes = 1 + np.arange(label.shape[2]) // 2 % 11
    return np.where(label > 0, stripes[None, None, :], 0).astype(np.uint8) * (label != i % 3)


def sparse(label: np.ndarray, i: int) -> np.ndarray:
    """Three annotated slices; all others are to be ignored, label 3."""
    annotated = np.zeros(label.shape[0], bool)
    annotated[[8 + i % 2, 10, 12]] = True
    return np.where(annotated[:, None, None], label, 3).astype(np.uint8)


REGIONS = {"labels": {"background": 0, "both": [1, 2], "back": 2}, "further": {"regions_class_order": [1, 2]}}
ROWS = {
    "2d": Row("2d"),
    "residual-encoder": Row(planner=("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans")),
    "channels-masked-normalization": Row(channels=("T1", "CT", "T2"), case=on_black),
    "many-classes": Row(labels={"background": 0, **{f"organ{k}": k for k in range(1, 14)}}, relabel=many),
    "regions": Row(**REGIONS),
    "ignore": Row(labels={**PLAIN, "ignore": 3}, relabel=sparse),
    "regions-ignore": Row(
        labels={**REGIONS["labels"], "ignore": 3}, further=REGIONS["further"], relabel=sparse, configuration="2d"
    ),
    "anisotropic": Row(case=thick_slices, spacing=(0.5, 0.5, 4.5)),
    "png": Row("2d", case=slices, ending=".png"),
    "tif": Row("2d", case=slices, ending=".tif", further={"overwrite_image_reader_writer": "NaturalImage2DIO"}),
    "nrrd": Row(ending=".nrrd"),
    "two-labelled-batch-of-one": Row(labeled=2, plans={"batch_size": 1}),
    "fold-all-odd-batch": Row(fold="all", labeled=1, plans={"batch_size": 3}),
}


def write_dataset(row: Row, folder: Path) -> None:
    kinds = (("tr", "Tr", row.labeled), ("un", "Un", 4), ("ts", "Ts", 2))
    for kind, part, number in kinds:
        for i in range(number):
            image, label = row.case(i + 100 * len(kind + part) * (kind != "tr"))
            for channel in range(len(row.channels)):
                write_file(image // (channel + 1), folder / f"images{part}/{kind}_{i}_{channel:04d}{row.ending}", row.spacing)
            if kind == "tr":
                write_file(row.relabel(label, i), folder / f"labelsTr/{kind}_{i}{row.ending}", row.spacing)
    description = {
        "channel_names": {str(i): name for i, name in enumerate(row.channels)},
        "labels": row.labels,
        "numTraining": row.labeled,
        "file_ending": row.ending,
        **row.further,
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def write_file(array: np.ndarray, path: Path, spacing: tuple[float, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".png", ".tif"):
        io.imsave(path, array, check_contrast=False)
    else:
        write_image(array, path, spacing)


def read_labels(path: Path) -> np.ndarray:
    return io.imread(path) if path.suffix in (".png", ".tif") else sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


#: nnU-Net 2.8.1 takes the number of its workers for that of torch's threads when it plans, and torch wants at least one
PLANNING = {"nnUNet_n_proc_DA": "1"}
#: what differs from another row, or from the tests through a whole command line, in one thing only
SLOW = {"2d", "regions", "ignore", "tif", "nrrd", "two-labelled-batch-of-one", "fold-all-odd-batch"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ROWS])
def test_row(tmp_path: Path, name: str):
    workspace = Workspace(tmp_path)
    row = ROWS[name]
    planner, plans = row.planner
    write_dataset(row, workspace.raw)
    workspace.call("nnUNetv2_plan_and_preprocess", *f"-d 101 -pl {planner} -npfp 1 --no_pp".split(), variables=PLANNING)
    plans_file = workspace.preprocessed / f"{plans}.json"
    content = json.loads(plans_file.read_text(encoding="utf-8"))
    configuration = content["configurations"][row.configuration]
    configuration.update(row.plans)
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [4] * arguments["n_stages"]  # all else as planned
    plans_file.write_text(json.dumps(content))
    workspace.call("nnUNetv2_preprocess", "-d", 101, "-c", row.configuration, "-plans_name", plans, "-np", 1)
    workspace.call("nnUNetv2_train", 101, row.configuration, row.fold, "-tr", TRAINER, "-p", plans, "-device", "cpu")
    model = workspace.results / NAME / f"{TRAINER}__{plans}__{row.configuration}"
    summary = json.loads((model / f"fold_{row.fold}" / "validation" / "summary.json").read_text(encoding="utf-8"))
    # classes that no case has are not measured
    assert any(np.isfinite(values["Dice"]) for values in summary["mean"].values())
    companion = torch.load(model / f"fold_{row.fold}" / "checkpoint_final_caml_0001.pth", weights_only=True)
    training = row.labeled if row.fold == "all" else row.labeled - 1
    assert companion["memory"]["counts"].shape == (training, len(row.labels) - ("ignore" in row.labels))
    log = next((model / f"fold_{row.fold}").glob("training_log_*.txt")).read_text(encoding="utf-8")
    assert "4 unlabelled training cases (4 preprocessed now)" in log
    line = next(line for line in log.splitlines() if "L_s" in line)
    assert "nan" not in line.split("agreement")[0]
    output = workspace.root / "predicted"
    workspace.call(
        *("nnUNetv2_predict", "-i", workspace.raw / "imagesTs", "-o", output, "-d", 101, "-c", row.configuration, "-p", plans),
        *f"-tr {TRAINER} -f {row.fold} -device cpu -npp 0 -nps 0 --disable_tta".split(),
    )
    predicted = sorted(output.glob(f"ts_*{row.ending}"))
    assert len(predicted) == 2
    allowed = {v for value in row.labels.values() for v in (value if isinstance(value, list) else [value])}
    for file in predicted:
        assert set(np.unique(read_labels(file))) <= allowed - ({3} if "ignore" in row.labels else set())
