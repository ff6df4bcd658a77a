"""The demo from the first synthetic case to the comparison."""

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from time import monotonic

import torch

import nnunet_caml
from nnunet_caml.demo import figure
from nnunet_caml.demo.commands import CommandError, CommandLine, PlanningWatch, PredictionWatch, TrainingWatch, clock
from nnunet_caml.demo.configuration import CONFIGURATION, FEATURES, PATCH_SIZE, add_configuration
from nnunet_caml.demo.dataset import DATASET_ID, DATASET_NAME, FILE_ENDING, TEST_IMAGES, TEST_LABELS, read, write_dataset
from nnunet_caml.demo.evaluation import Scores, score, statistics, table
from nnunet_caml.demo.schedules import (
    EPOCHS,
    ITERATIONS_PER_EPOCH,
    LONGER_EPOCHS,
    nnUNetTrainer_demo,
    nnUNetTrainer_demoLonger,
    nnUNetTrainerCAML_demo,
)

__all__ = ["MARKER", "claim_folder", "environment", "run"]

MARKER = ".nnunet_caml_demo"
LONGER = "nnU-Net-longer"
TRAINERS = {
    "nnU-Net": nnUNetTrainer_demo.__name__,
    "CAML": nnUNetTrainerCAML_demo.__name__,
    LONGER: nnUNetTrainer_demoLonger.__name__,
}
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
PREDICTIONS, LOGS, FIGURE, RESULTS = "predictions", "logs", "comparison.png", "results.json"


def run(output_folder: Path, device: str | None = None, seed: int = 2023, narrow: bool = False, longer: bool = False) -> int:
    """Draws the data, runs nnU-Net's commands, and prints the comparison.

    Args:
        output_folder: Everything is written there.
        device: ``cpu``, ``cuda`` or ``mps``; by default the best there is.
        seed: Of the synthetic cases.
        narrow: See :func:`nnunet_caml.demo.dataset.write_dataset`.
        longer: Trains plain nnU-Net once more, for as long as CAML has taken.

    Returns:
        Exit status: 0, or 1 if a command failed.

    Raises:
        FileExistsError: The folder holds something that is not a demo.
    """
    began = monotonic()
    device = device or best_device()
    folder = output_folder.resolve()
    if claim_folder(folder):
        print(f"{output_folder} holds an earlier demo: its files are removed, this one starts afresh.")
    variables = environment(folder, device)
    terminal = CommandLine(variables, folder / LOGS, began=began)
    try:
        iterations, seconds = _commands(folder, device, terminal, seed, narrow, longer)
    except CommandError as error:
        print(f"\nThe demo stopped: {error}", flush=True)
        return 1
    raw = folder / "nnUNet_raw" / DATASET_NAME
    scores = {name: score(folder / PREDICTIONS / name, raw / TEST_LABELS) for name in iterations}
    _write_figure(folder, raw, scores)
    seconds["total"] = monotonic() - began
    _write_results(folder / RESULTS, scores, iterations, seconds, device, {"seed": seed, "narrow": narrow})
    print(_summary(output_folder, scores, iterations, seconds, device), flush=True)
    return 0


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def claim_folder(folder: Path) -> bool:
    """Makes the output folder, or clears it of an earlier demo. Nothing else in it is touched.

    Returns:
        Whether there was an earlier demo.

    Raises:
        FileExistsError: There is something else.
    """
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: choose a folder with -o.")
    earlier = marker.is_file()
    if folder.is_dir() and any(folder.iterdir()) and not earlier:
        raise FileExistsError(f"{folder} is not empty and not from an earlier demo: choose a new folder with -o.")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("This folder belongs to `nnunet-caml demo`, which clears it when it runs here again.\n", encoding="utf-8")
    if earlier:
        for name in NNUNET_FOLDERS:
            shutil.rmtree(folder / name / DATASET_NAME, ignore_errors=True)
        for name in (PREDICTIONS, LOGS):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (FIGURE, RESULTS):
            (folder / name).unlink(missing_ok=True)
    return earlier


def environment(folder: Path, device: str) -> dict[str, str]:
    """Variables for the commands; this process and the user's own settings stay as they are."""
    trainers = str(Path(__file__).resolve().parent / "trainers")
    known = [path for path in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if path]
    variables = {name: str(folder / name) for name in NNUNET_FOLDERS}
    variables["nnUNet_extTrainer"] = os.pathsep.join([*known, trainers])
    # Every worker process imports torch first, which takes longer than what there is to do for it.
    variables["nnUNet_n_proc_DA"] = "1"
    variables["nnUNet_def_n_proc"] = "1"
    # Compiling takes longer than these trainings do, and nobody wants a demo in their experiment tracker.
    variables["nnUNet_compile"] = "F"
    variables["nnUNet_wandb_enabled"] = "0"
    if device == "cpu":
        # Threads that wait actively for each other come to a standstill where other programs use the cores, too.
        variables["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    return variables


def longer_epochs(trained_s: Mapping[str, float]) -> int:
    """Epochs that plain nnU-Net gets through in CAML's training time, at least as many as CAML has.

    Args:
        trained_s: Seconds that the epochs of ``nnU-Net`` and of ``CAML`` took.
    """
    return max(EPOCHS, round(EPOCHS * trained_s["CAML"] / trained_s["nnU-Net"]))


def _commands(
    folder: Path, device: str, terminal: CommandLine, seed: int, narrow: bool, longer: bool
) -> tuple[dict[str, int], dict[str, float]]:
    """Everything up to the predictions; returns the iterations of each training and the seconds that each part took."""
    iterations = EPOCHS * ITERATIONS_PER_EPOCH
    print(
        f"Demo on {device}: plain nnU-Net and CAML, {iterations} iterations each. Takes minutes; all output in {folder}\n\n"
        f"Synthetic data set of seed {seed}: 4 labelled, 76 unlabelled and 12 held-out cases of bodies of every size in every\n"
        f"phase of a contrast agent{', but the labelled ones of upright adults in an early phase' if narrow else ''}."
    )
    raw = write_dataset(folder / "nnUNet_raw", seed=seed, narrow=narrow)
    print("\nThe commands below work in any terminal with these variables set:")
    for name, value in terminal.variables.items():
        if name in NNUNET_FOLDERS or name == "nnUNet_extTrainer":
            print(f"export {name}={shlex.quote(value)}")
    seconds = {
        "planning": terminal.run(
            f"nnUNetv2_plan_and_preprocess -d {DATASET_ID} -c 3d_fullres --verify_dataset_integrity -npfp 1 -np 1".split(),
            "plan_and_preprocess.txt",
            PlanningWatch(),
        )
    }
    plans = folder / "nnUNet_preprocessed" / DATASET_NAME / "nnUNetPlans.json"
    add_configuration(plans)
    print(
        f"\nAdded a small configuration {CONFIGURATION} to {plans.name} (inherits_from 3d_fullres, features "
        f"{', '.join(map(str, FEATURES))}, patch {' x '.join(map(str, PATCH_SIZE))}):\n3d_fullres as planned is too much for "
        f"a CPU in a few minutes."
    )
    cases = len(list((raw / TEST_IMAGES).iterdir()))
    epochs: dict[str, int] = {}
    trained_s: dict[str, float] = {}
    for name, trainer in TRAINERS.items():
        if name == LONGER and not longer:
            continue
        # Loading in the process itself: patches are small, and seeds hold. Not for planning, which fails with 0.
        variables = {"nnUNet_n_proc_DA": "0"}
        epochs[name] = EPOCHS
        if name == LONGER:
            epochs[name] = longer_epochs(trained_s)
            variables[LONGER_EPOCHS] = str(epochs[name])
        watch = TrainingWatch(epochs[name])
        seconds[f"training {name}"] = terminal.run(
            f"nnUNetv2_train {DATASET_ID} {CONFIGURATION} all -tr {trainer} -device {device}".split(),
            f"train_{name}.txt",
            watch,
            variables,
        )
        trained_s[name] = watch.trained_s
        predictions = folder / PREDICTIONS / name
        seconds[f"prediction {name}"] = terminal.run(
            [
                *("nnUNetv2_predict", "-i", str(raw / TEST_IMAGES), "-o", str(predictions)),
                *f"-d {DATASET_ID} -c {CONFIGURATION} -f all -tr {trainer} -device {device} -npp 1 -nps 1".split(),
                "--disable_tta",  # mirroring would take as long as a training here
            ],
            f"predict_{name}.txt",
            PredictionWatch(cases),
        )
    return {name: number * ITERATIONS_PER_EPOCH for name, number in epochs.items()}, seconds


def _write_figure(folder: Path, raw: Path, scores: Mapping[str, Scores]) -> None:
    rows = []
    for rank, case in figure.best_median_worst(scores["CAML"]).items():
        image = read(raw / TEST_IMAGES / f"{case}_0000{FILE_ENDING}")
        truth = read(raw / TEST_LABELS / f"{case}{FILE_ENDING}")
        predictions = {name: read(folder / PREDICTIONS / name / f"{case}{FILE_ENDING}") for name in scores}
        rows.append(figure.Row(f"{rank} of CAML\n{case}", image, truth, predictions))
    figure.write_figure(rows, folder / FIGURE)


def _write_results(
    path: Path,
    scores: Mapping[str, Scores],
    iterations: Mapping[str, int],
    seconds: dict[str, float],
    device: str,
    data: Mapping[str, int | bool],
) -> None:
    content = {
        "dice": {name: {**statistics(cases), "cases": cases} for name, cases in scores.items()},
        "iterations": iterations,
        "data": data,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "device": device,
        "versions": {"nnunet_caml": nnunet_caml.__version__, "torch": torch.__version__},
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _summary(
    folder: Path, scores: Mapping[str, Scores], iterations: Mapping[str, int], seconds: dict[str, float], device: str
) -> str:
    cases = len(scores["CAML"])
    times = ", ".join(f"{name} {clock(value)}" for name, value in seconds.items() if name.startswith("training"))
    lengths = f"{iterations['CAML']} iterations"
    if LONGER in iterations:
        lengths += f" ({LONGER}: {iterations[LONGER]}, CAML's time)"
    ending = (
        "So short a training on so small a network shows how it works, not how good it is: plain nnU-Net has not yet learned\n"
        "all that its four cases teach, and given the time that CAML takes it can end above CAML"
    )
    ending += "." if LONGER in iterations else " (--longer trains it)."
    return (
        f"\nDice of {cases} held-out cases (mean ± standard deviation), {lengths}, "
        f"last checkpoint, {device}:\n\n{table(scores)}\n\n"
        f"{clock(seconds['total'])} in all ({times})\n"
        f"Predictions  {folder / PREDICTIONS}\n"
        f"Picture      {folder / FIGURE}\n"
        f"Numbers      {folder / RESULTS}\n"
        f"Logs         {folder / LOGS}\n"
        f"{ending}"
    )
