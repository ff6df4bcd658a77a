"""One run: train, predict, measure. Each part is skipped when its result is there."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

from study.commands import Workspace, training_watch
from study.data import PLANS, WHOLE, dataset_name, pseudo_labeled
from study.description import Arm, Run, Study
from study.metrics import measure
from study.schedules import COST, TIMING, trainer_name

__all__ = [
    *("execute", "is_done", "is_trained", "iteration_seconds", "measured_data", "metrics_file", "mirrors", "model_folder"),
    *("predict", "read_cost", "time_arms"),
]


#: trainers that change their loaders after worker processes would have started
WITHOUT_WORKERS = ("nnUNetTrainerCAML_views",)


def metrics_file(work: Workspace, run: Run, auxiliary: bool = False) -> Path:
    """Where the figures of a run are."""
    return work.measured("metrics") / f"{run.name}{'-auxiliary' if auxiliary else ''}.csv"


def is_done(work: Workspace, run: Run) -> bool:
    """Whether nothing is left to do."""
    return metrics_file(work, run).is_file() and (not run.arm.auxiliary or metrics_file(work, run, True).is_file())


def training_data(study: Study, run: Run) -> str:
    """Name of the data set that nnU-Net is called with."""
    name = dataset_name(study, run)
    return name if run.arm.pseudo_labels_from is None else f"{run.arm.slug}_{name}_Seed{run.seed}"


def is_trained(study: Study, work: Workspace, run: Run) -> bool:
    """Whether the network is there, and what it cost."""
    fold = model_folder(study, work, run) / "fold_all"
    return (fold / "checkpoint_final.pth").is_file() and (fold / COST).is_file()


def model_folder(study: Study, work: Workspace, run: Run, suffix: str = "") -> Path:
    """nnU-Net's folder of the trained model."""
    model = f"{trainer_name(run)}{suffix}__{PLANS}__{study.configuration.name}"
    return work.results / work.dataset(training_data(study, run)) / model


def execute(study: Study, work: Workspace, run: Run) -> None:
    """Does what is left of a run.

    Raises:
        CommandError: A command failed; the next call goes on from there.
    """
    with work.alone(run.name):
        if not is_done(work, run):
            _execute(study, work, run)


def _execute(study: Study, work: Workspace, run: Run) -> None:
    if work.measurement.largest:
        _execute(study, work.with_all_components(), run)
    if run.arm.pseudo_labels_from is not None:
        _make_pseudo_labels(study, work, run)
    _train(study, work, run)
    truth = measured_data(study, work, run)
    description: dict[str, Any] = json.loads((truth / "dataset.json").read_text(encoding="utf-8"))
    classes = {k: v for k, v in description["labels"].items() if v != 0 and k != "ignore"}
    for auxiliary in (False, True) if run.arm.auxiliary else (False,):
        target = metrics_file(work, run, auxiliary)
        if target.is_file():
            continue
        predictions = work.with_all_components().measured("predictions") / target.stem
        if not work.measurement.largest or not predictions.is_dir():
            predict(study, work, run, truth / "imagesTs", predictions, mirrors(study, work), "_auxiliary" if auxiliary else "")
        if work.measurement.largest:
            predictions = _keep_largest(work, predictions, classes)
        ignore = description["labels"].get("ignore")
        measure(predictions, truth / "labelsTs", classes, description["file_ending"], target, work.processes, ignore)


def measured_data(study: Study, work: Workspace, run: Run) -> Path:
    """Raw data set whose ``imagesTs`` and ``labelsTs`` a run is measured on."""
    return work.raw / work.dataset(WHOLE if work.measurement.test else dataset_name(study, run))


def mirrors(study: Study, work: Workspace) -> bool:
    """Whether the cases that runs are measured on are predicted with mirroring."""
    asked = work.measurement.mirrored
    return study.test_time_augmentation if asked is None else asked


def _train(study: Study, work: Workspace, run: Run) -> None:
    fold = model_folder(study, work, run) / "fold_all"
    if is_trained(study, work, run):
        return
    number, configuration = str(work.dataset_id(training_data(study, run))), study.configuration.name
    command = ["nnUNetv2_train", number, configuration, "all", "-tr", trainer_name(run)]
    command += ["-p", PLANS, "-device", work.device]
    # killed in training, or between its end and the writing of its cost
    if any((fold / f"checkpoint_{which}.pth").is_file() for which in ("latest", "final")):
        command.append("--c")
    epochs = study.epochs(run.arm) if run.seed >= 0 else TIMING[0]
    workers = 0 if run.arm.trainer in WITHOUT_WORKERS else work.workers
    work.run(run.name, command, training_watch(epochs), {"nnUNet_n_proc_DA": str(workers)})


def time_arms(study: Study, work: Workspace, selected: list[Run]) -> None:
    """Trains each arm that has nothing finished yet for a few iterations, so that a study can say how long it takes.

    Pseudo-labels are timed as what they are, a training like that of the arm that they come from.
    """
    for arm in {run.arm.name: run.arm for run in selected if not is_done(work, run)}.values():
        if arm.pseudo_labels_from is not None or iteration_seconds(study, work, arm) is not None:
            continue
        example = next(run for run in selected if run.arm.name == arm.name)
        timing = Run(arm, example.labeled, example.subset, -1)
        with work.alone(timing.name):
            _train(study, work, timing)


def iteration_seconds(study: Study, work: Workspace, arm: Arm) -> float | None:
    """Seconds per iteration in any finished run of an arm, or in its training for timing; ``None`` if there is neither.

    Of a finished run that is the mean: the first iterations of CAML, without unlabelled patches, are the cheaper ones.
    """
    arm = next((other for other in study.arms if other.name == arm.pseudo_labels_from), arm)
    of_arm = [run for run in study.runs() if run.arm.name == arm.name]
    for run in (*of_arm, *(Run(arm, run.labeled, run.subset, -1) for run in of_arm)):
        if cost := read_cost(study, work, run):
            # earlier versions did not write down how many there were
            return cost["iteration_s"] if run.seed < 0 or "iterations" not in cost else cost["training_s"] / cost["iterations"]
    return None


def read_cost(study: Study, work: Workspace, run: Run) -> dict[str, Any] | None:
    """What a finished training cost."""
    path = model_folder(study, work, run) / "fold_all" / COST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def predict(
    study: Study,
    work: Workspace,
    run: Run,
    images: Path,
    predictions: Path,
    mirrored: bool,
    suffix: str = "",
    probabilities: bool = False,
) -> None:
    """Predicts all images of a folder with the last checkpoint."""
    trainer = trainer_name(run) + suffix
    command = ["nnUNetv2_predict", "-i", str(images), "-o", str(predictions), "-f", "all", "-tr", trainer]
    command += ["-d", str(work.dataset_id(training_data(study, run))), "-c", study.configuration.name]
    command += ["-p", PLANS, "-device", work.device]
    processes = "1" if work.device == "cpu" else str(min(4, work.processes))
    command += ["-npp", processes, "-nps", processes]
    if not mirrored:
        command.append("--disable_tta")
    if probabilities:
        command.append("--save_probabilities")
    work.run(f"{run.name}{suffix}", command)


def _keep_largest(work: Workspace, predictions: Path, classes: dict[str, int | list[int]]) -> Path:
    """Copies of predictions with the largest component of each class alone, by nnU-Net's command; gives their folder."""
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation as one

    target = work.measured("predictions") / predictions.name
    target.mkdir(parents=True, exist_ok=True)
    values = [tuple(value) if isinstance(value, list) else value for value in classes.values()]
    rules = target / "postprocessing.pkl"
    rules.write_bytes(pickle.dumps(([one] * len(values), [{"labels_or_regions": value} for value in values])))
    command = ["nnUNetv2_apply_postprocessing", "-i", str(predictions), "-o", str(target), "-pp_pkl_file", str(rules)]
    work.run(predictions.name, [*command, "-np", str(work.processes)])
    return target


def _make_pseudo_labels(study: Study, work: Workspace, run: Run) -> None:
    first = next(
        other
        for other in study.runs()
        if other.arm.name == run.arm.pseudo_labels_from
        and (other.labeled, other.subset, other.seed) == (run.labeled, run.subset, run.seed)
    )
    name = training_data(study, run)
    predictions = work.folder / "predictions" / f"{name}-unlabeled"
    done = predictions / "done"
    if not done.is_file():
        shutil.rmtree(predictions, ignore_errors=True)
        unlabeled = work.raw / work.dataset(dataset_name(study, run)) / "imagesUn"
        predict(study, work, first, unlabeled, predictions, study.test_time_augmentation)
        done.touch()
    pseudo_labeled(study, work, name, dataset_name(study, run), predictions)
