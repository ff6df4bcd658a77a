"""The data sets of a study: one with all labels, and one for every number of labelled cases and subset.

Everything is done by the commands that users have: a converter, ``hide_labels.py``, nnU-Net's planning and preprocessing,
and ``nnunet-caml preprocess``. A data set is done when its file ``.ready`` is there, which says for what configuration.
"""

import json
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from study.commands import REPOSITORY, Workspace
from study.description import Configuration, Run, Study, StudyError, shown

__all__ = ["PLANS", "check", "check_batch_sizes", "dataset_name", "prepare", "pseudo_labeled"]

READY = ".ready"
#: of the plans, whatever the planner calls them
PLANS = "nnUNetPlans"
#: where the test cases of a study with development cases are
WHOLE = "WholeSource"
#: the training cases, all of them labelled
ALL_LABELS = "AllLabels"


def dataset_name(study: Study, run: Run) -> str:
    """Name of the data set that a run trains on, without nnU-Net's number."""
    return ALL_LABELS if run.labeled is None else f"Labeled{run.labeled}Subset{run.subset}"


def check(study: Study) -> None:
    """Raises if a study cannot be prepared, before an hour of work leads there.

    Raises:
        StudyError: There is no such converter, or no such planner.
    """
    if not (REPOSITORY / "dataset_conversion" / study.data.converter).is_file():
        there = ", ".join(sorted(file.name for file in (REPOSITORY / "dataset_conversion").glob("*.py")))
        raise StudyError(f"{study.name}, data: converter should be one of {there}, not {shown(study.data.converter)}.")
    planner, place = study.configuration.planner, Path(nnunetv2.__path__[0]) / "experiment_planning"
    if recursive_find_python_class(str(place), planner, "nnunetv2.experiment_planning") is None:
        raise StudyError(f"{study.name}, configuration: nnU-Net has no planner {shown(planner)}.")


def prepare(study: Study, work: Workspace, selected: Sequence[Run]) -> None:
    """Makes the data sets of the selected runs, as far as they are missing.

    Raises:
        CommandError: A command failed.
        StudyError: They cannot be compared, or were prepared for another configuration.
    """
    _prepare(study, work, selected)
    # of other parts of the study as well, which may have been run before
    check_batch_sizes(study, work, sorted({dataset_name(study, run) for run in study.runs()}))


def check_batch_sizes(study: Study, work: Workspace, names: Sequence[str]) -> None:
    """Raises if data sets have batches of different sizes: nnU-Net lets one cover 5 % of the labelled voxels at most.

    Those that are not planned yet are left out.

    Raises:
        StudyError: With all labels, it planned more for a batch than with a few.
    """
    sizes = {}
    for name in names:
        if (file := work.preprocessed / work.dataset(name) / f"{PLANS}.json").is_file():
            plans = PlansManager(str(file))
            if study.configuration.name in plans.available_configurations:  # not where a preparation was interrupted
                sizes[name] = plans.get_configuration(study.configuration.name).batch_size
    if len(set(sizes.values())) > 1:
        raise StudyError(
            f"{study.name}: nnU-Net plans batches of different sizes ({', '.join(f'{k}: {v}' for k, v in sizes.items())}), so "
            f"arms would differ in how much they see. Give inherits_from and batch_size in the study's configuration, with a "
            f"name of its own, and another --output."
        )


def _prepare(study: Study, work: Workspace, selected: Sequence[Run]) -> None:
    base, data = ALL_LABELS, study.data
    source = str(work.shared / data.source)
    arguments = [*data.arguments, *(["--only", data.only] if data.only else [])]
    if data.order_of_source:
        for run in selected:
            name, labeled = dataset_name(study, run), "all" if run.labeled is None else str(run.labeled)
            _make(work, name, data.converter, source, "--labeled", labeled, *arguments)
            plan_and_preprocess(study, work, name)
        return
    if data.development:
        base = WHOLE
    _make(work, base, data.converter, source, "--labeled", "all", *arguments)
    if data.development:
        _make(
            work,
            ALL_LABELS,
            "hide_labels.py",
            str(work.raw / work.dataset(base)),
            *("--labeled", "all", "--without-test", "--test", str(data.development), "--seed", str(data.development_seed)),
            "--link",
        )
    whole = str(work.raw / work.dataset(ALL_LABELS))
    for run in selected:
        name = dataset_name(study, run)
        if run.labeled is not None:
            _make(work, name, "hide_labels.py", whole, "--labeled", str(run.labeled), "--seed", str(run.subset), "--link")
        plan_and_preprocess(study, work, name)


def _make(work: Workspace, name: str, script: str, source: str, *arguments: str) -> None:
    if not (work.raw / work.dataset(name)).is_dir():  # a converter writes a data set whole or not at all
        work.convert(name, script, source, "--dataset-id", str(work.dataset_id(name)), "--name", name, *arguments)


def plan_and_preprocess(study: Study, work: Workspace, name: str, plans_of: str | None = None) -> None:
    """Plans a data set, adds the study's configuration, preprocesses labelled and unlabelled cases.

    Args:
        study: The study.
        work: Its folder.
        name: Of the data set.
        plans_of: Take the plans of this data set instead.

    Raises:
        CommandError: A command failed.
        StudyError: It was prepared for another configuration.
    """
    number, processes = str(work.dataset_id(name)), str(work.processes)
    folder = work.preprocessed / work.dataset(name)
    ready = folder / READY
    wanted = json.dumps(asdict(study.configuration), indent=2)
    if ready.is_file():
        if (there := ready.read_text(encoding="utf-8")) not in ("", wanted):  # earlier versions left it empty
            raise StudyError(
                f"{ready} says that {name} was prepared for another configuration, {there}. Give another --output."
            )
        return
    if plans_of is None:
        work.run(name, ["nnUNetv2_extract_fingerprint", "-d", number, "-np", processes, "--verify_dataset_integrity"])
        planner = study.configuration.planner
        work.run(name, ["nnUNetv2_plan_experiment", "-d", number, "-pl", planner, "-overwrite_plans_name", PLANS])
        add_configuration(folder / f"{PLANS}.json", study.configuration)
    else:
        work.run(name, ["nnUNetv2_extract_fingerprint", "-d", number, "-np", processes])
        source = str(work.dataset_id(plans_of))
        # which nnU-Net's planning would have copied
        shutil.copy(work.raw / work.dataset(name) / "dataset.json", folder / "dataset.json")
        work.run(name, ["nnUNetv2_move_plans_between_datasets", "-s", source, "-t", number, "-sp", PLANS, "-tp", PLANS])
    configuration = study.configuration.name
    work.run(name, ["nnUNetv2_preprocess", "-d", number, "-c", configuration, "-plans_name", PLANS, "-np", processes])
    if (work.raw / work.dataset(name) / "imagesUn").is_dir():
        work.run(name, ["nnunet-caml", "preprocess", "-d", number, "-c", configuration, "-p", PLANS, "-np", processes])
    ready.write_text(wanted, encoding="utf-8")


def add_configuration(plans_file: Path, configuration: Configuration) -> None:
    """Adds a smaller configuration to nnU-Net's plans, as one would do it by hand; nothing if it is a planned one.

    Strides halve an axis from stage to stage as long as it stays at least 4 voxels long, as nnU-Net's planner does.

    Raises:
        StudyError: The plans do not have the planned one, or it has another number of axes.
    """
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    base = configuration.inherits_from or configuration.name
    if base not in plans["configurations"]:
        key, there = "inherits_from" if configuration.inherits_from else "name", ", ".join(plans["configurations"])
        raise StudyError(f"configuration: {key} should be one of {there}, as planned in {plans_file}, not {base!r}.")
    if configuration.inherits_from is None:
        return
    entry: dict = {"inherits_from": base}
    planned = PlansManager(plans).get_configuration(base).configuration
    patch = configuration.patch_size or planned["patch_size"]
    for key in ("patch_size", "spacing"):
        if (value := getattr(configuration, key)) is not None:
            if len(value) != (axes := len(planned["patch_size"])):
                raise StudyError(
                    f"configuration: {key} should have {axes} axes, as {base} in {plans_file}, not {shown(value)}."
                )
            entry[key] = list(value)
    if configuration.spacing is not None:
        entry["data_identifier"] = f"{plans['plans_name']}_{configuration.name}"
    if configuration.batch_size is not None:
        entry["batch_size"] = configuration.batch_size
    if configuration.features is not None:
        # nnU-Net replaces inherited entries and does not merge them
        architecture = deepcopy(planned["architecture"])
        stages, strides, sizes = len(configuration.features), [[1] * len(patch)], list(patch)
        for _ in range(stages - 1):
            strides.append([2 if size % 2 == 0 and size >= 6 else 1 for size in sizes])
            sizes = [size // stride for size, stride in zip(sizes, strides[-1], strict=True)]
        arguments = architecture["arch_kwargs"]
        blocks = "n_blocks_per_stage" if "n_blocks_per_stage" in arguments else "n_conv_per_stage"
        arguments.update(
            n_stages=stages,
            features_per_stage=list(configuration.features),
            kernel_sizes=[[3] * len(patch)] * stages,
            strides=strides,
            **{blocks: (arguments[blocks] * stages)[:stages]},
            n_conv_per_stage_decoder=(arguments["n_conv_per_stage_decoder"] * stages)[: stages - 1],
        )
        entry["architecture"] = architecture
    plans["configurations"][configuration.name] = entry
    plans_file.write_text(json.dumps(plans, indent=4) + "\n", encoding="utf-8")


def pseudo_labeled(study: Study, work: Workspace, name: str, teacher: str, predictions: Path) -> None:
    """A data set in which the predictions of the unlabelled cases stand for their labels.

    Args:
        study: The study.
        work: Its folder.
        name: Of the new data set.
        teacher: Of the data set that the predictions were made with.
        predictions: One label map per unlabelled case.
    """
    source, target = work.raw / work.dataset(teacher), work.raw / work.dataset(name)
    if not target.is_dir():
        half = target.with_suffix(".tmp")
        description = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
        ending = description["file_ending"]
        for folder in ("imagesTr", "labelsTr"):
            (half / folder).mkdir(parents=True, exist_ok=True)
        labels = [*(source / "labelsTr").glob(f"*{ending}"), *predictions.glob(f"*{ending}")]
        for path in [*(source / "imagesTr").iterdir(), *(source / "imagesUn").iterdir()]:
            _link(path, half / "imagesTr" / path.name)
        for path in labels:
            _link(path, half / "labelsTr" / path.name)
        description["numTraining"] = len(labels)
        (half / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        half.rename(target)
    plan_and_preprocess(study, work, name, plans_of=teacher)


def _link(source: Path, target: Path) -> None:
    if not target.is_symlink():
        target.symlink_to(source.resolve())
