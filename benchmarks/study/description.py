"""The file that describes a study."""

import json
import math
import re
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

__all__ = ["Arm", "Configuration", "Data", "Run", "Study", "StudyError", "fits", "read_study", "shown", "words"]

#: what a value of the file is called, by its type here; the second is for several of them
_WORDS: dict[Any, tuple[str, str]] = {
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", ""),
    NoneType: ("null", ""),
}


class StudyError(ValueError):
    """A study cannot be run as it is described; the message names the file or entry and the way out."""


@dataclass(frozen=True)
class Data:
    """Where the cases come from.

    Attributes:
        converter: Name of a script in ``dataset_conversion/``.
        source: Its SOURCE, relative to the folder of shared data.
        arguments: Its further arguments. All training cases keep their label here; the test cases are held out.
        only: List of the cases to take, beside the study file; all, if not given.
        development: Number of training cases that take the place of the test cases. With 0 the test cases are used, which
            is for the end, when all choices are made.
        order_of_source: The labelled cases are the first ones in the source's own order, as the converter takes them, and
            not drawn by lot; there is one subset then.
        development_seed: Of the lot that draws them.
    """

    converter: str
    source: str
    arguments: tuple[str, ...] = ()
    only: str | None = None
    development: int = 0
    development_seed: int = 1
    order_of_source: bool = False


@dataclass(frozen=True)
class Configuration:
    """A configuration of the plans, as planned or (with ``inherits_from``) a smaller one.

    Attributes:
        name: Of the configuration.
        inherits_from: Of the planned one that it is made from; without it, the next four have no effect.
        patch_size: In voxels, axes as in the plans.
        features: Channels per stage; as many stages as there are entries, three at least.
        spacing: In mm; ``None`` keeps that of ``inherits_from``.
        batch_size: ``None`` keeps that of ``inherits_from``.
        planner: nnU-Net's experiment planner.
    """

    name: str
    inherits_from: str | None = None
    patch_size: tuple[int, ...] | None = None
    features: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    batch_size: int | None = None
    planner: str = "ExperimentPlanner"


@dataclass(frozen=True)
class Arm:
    """One of the things compared.

    Attributes:
        name: For tables and figures.
        trainer: A trainer class of nnU-Net, of this package, of :mod:`study.baselines` or :mod:`study.trials`.
        attributes: Class attributes that differ from the trainer's own.
        all_labels: Trains on every training case with its label, the upper bound.
        pseudo_labels_from: Name of the arm whose predictions of the unlabelled cases are taken for labels.
        auxiliary: Also measures CAML's auxiliary network, which users never see, to watch both networks apart.
        by_labeled: Class attributes for a number of labelled cases, which come before ``attributes``.
        iterations: Of its trainings; ``None`` for the study's.
    """

    name: str
    trainer: str
    attributes: dict[str, Any] = field(default_factory=dict)
    all_labels: bool = False
    pseudo_labels_from: str | None = None
    auxiliary: bool = False
    by_labeled: dict[str, dict[str, Any]] = field(default_factory=dict)
    iterations: int | None = None

    @property
    def slug(self) -> str:
        """The name as a part of file and class names."""
        return re.sub(r"\W+", "_", self.name).strip("_")


@dataclass(frozen=True)
class Run:
    """One training of an arm.

    Attributes:
        arm: What is trained.
        labeled: Number of labelled cases; ``None`` for all.
        subset: Seed of the lot that draws them.
        seed: Of the training.
    """

    arm: Arm
    labeled: int | None
    subset: int
    seed: int

    @property
    def name(self) -> str:
        """Unique in the study."""
        return f"{self.arm.slug}-{'all' if self.labeled is None else self.labeled}-subset{self.subset}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: Of the study; also of its file.
        data: Where the cases come from.
        labeled: Numbers of labelled cases.
        subsets: Seeds of the lots that draw them; with one seed, fewer cases are a subset of more.
        seeds: Of the trainings.
        configuration: Of the plans.
        iterations: Of every training of an arm that has no number of its own.
        iterations_per_epoch: Length of an epoch; the learning rate falls from epoch to epoch.
        test_time_augmentation: Mirroring in prediction.
        arms: What is compared; the first one is the reference of the paired tests.
        remark: What the study is for.
    """

    name: str
    data: Data
    labeled: tuple[int, ...]
    configuration: Configuration
    iterations: int
    arms: tuple[Arm, ...]
    subsets: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    iterations_per_epoch: int = 250
    test_time_augmentation: bool = True
    remark: str = ""

    def epochs(self, arm: Arm) -> int:
        """Length of a training."""
        return (arm.iterations or self.iterations) // self.iterations_per_epoch

    def runs(self) -> list[Run]:
        """All trainings, those that others wait for first; the upper bound does not depend on the subset."""
        found = []
        for arm in sorted(self.arms, key=lambda arm: arm.pseudo_labels_from is not None):
            for seed in self.seeds:
                if arm.all_labels:
                    found.append(Run(arm, None, 0, seed))
                    continue
                found += [Run(arm, labeled, subset, seed) for labeled in self.labeled for subset in self.subsets]
        return found


def read_study(path: Path) -> Study:
    """Reads a study file.

    Raises:
        StudyError: It is missing, no JSON, or an entry is unknown, missing or impossible.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise StudyError(f"{path} cannot be read: give a study file, such as those in benchmarks/studies.") from error
    except ValueError as error:
        raise StudyError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} should be a JSON object with the entries of a study; see benchmarks/README.md.")
    content = {"name": path.stem, **content}
    for key, kind in (("data", Data), ("configuration", Configuration)):
        if key in content:
            content[key] = _make(kind, content[key], f"{path}, {key}")
    if "data" in content and content["data"].only is not None:
        content["data"] = replace(content["data"], only=str(path.resolve().parent / content["data"].only))
    arms = _object(content.get("arms", {}), f"{path}, arms")
    content["arms"] = tuple(_make(Arm, arm, f"{path}, arm {name}", name=name) for name, arm in arms.items())
    study = _make(Study, content, str(path))
    _check(study, path)
    for arm in study.arms:
        _check_arm(arm, study, f"{path}, arm {arm.name}")
    _check_configuration(study.configuration, f"{path}, configuration")
    return study


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the file, whose last entry of a name would silently win otherwise."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of the file may stand for a type; a list stands for a tuple, and ``true`` is no number."""
    inside = get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(fits(v, inside[0]) for v in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(v, inside[1]) for v in value.values())
    if inside:
        return any(fits(value, k) for k in inside)
    if kind is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return kind is Any or type(value) is kind


def words(kind: Any) -> str:
    """What a user calls a type."""
    inside = get_args(kind)
    if get_origin(kind) is tuple:
        return f"a list of {_WORDS[inside[0]][1]}"
    if get_origin(kind) is dict:
        return "an object" if inside[1] is Any else "an object of objects"
    return " or ".join(map(words, inside)) if inside else _WORDS[kind][0]


def shown(value: Any) -> str:
    """A value as it is in the file."""
    return json.dumps(value, ensure_ascii=False)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StudyError(f"{where} should be an object, not {shown(value)}.")
    return value


def _make(kind: type, content: Any, where: str, **given: Any) -> Any:
    """What an object of the file describes; ``given`` is what is not told in it."""
    content = _object(content, where)
    known = {f.name: f for f in fields(kind) if f.name not in given}
    if unknown := sorted(set(content) - set(known)):
        raise StudyError(f"{where}: {unknown[0]!r} is unknown; there are {', '.join(sorted(known))}.")
    for key, entry in known.items():
        if key not in content:
            if entry.default is MISSING and entry.default_factory is MISSING:
                raise StudyError(f"{where}: {key!r} is missing.")
        elif not fits(content[key], entry.type):
            raise StudyError(f"{where}: {key} should be {words(entry.type)}, not {shown(content[key])}.")
    return kind(**given, **{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


def _check(study: Study, path: Path) -> None:
    if not study.arms:
        raise StudyError(f"{path} has no arms: name at least one trainer.")
    if len({arm.slug for arm in study.arms}) < len(study.arms):
        raise StudyError(f"{path}: two arms differ in punctuation only; give them other names.")
    if taken := {f"{arm.name} (A)" for arm in study.arms if arm.auxiliary} & {arm.name for arm in study.arms}:
        raise StudyError(f"{path}: {min(taken)} is what the figures of a network A are called; give that arm another name.")
    for key, least in (("labeled", 1), ("subsets", 0), ("seeds", 0)):  # a seed below 0 is that of a training for timing
        values = getattr(study, key)
        if not values or min(values) < least or len(set(values)) < len(values):
            raise StudyError(f"{path}: {key} should be one or more different whole numbers from {least}, not {shown(values)}.")
    if study.data.development < 0:
        raise StudyError(f"{path}, data: development should be a whole number from 0, not {study.data.development}.")
    if study.data.order_of_source and (study.subsets != (0,) or study.data.development):
        raise StudyError(f"{path}: with order_of_source there is subset 0 only, and no development cases; change one of them.")
    if study.iterations_per_epoch < 1:
        raise StudyError(f"{path}: iterations_per_epoch should be a whole number from 1, not {study.iterations_per_epoch}.")
    lengths = {str(path): study.iterations}
    lengths |= {f"{path}, arm {arm.name}": arm.iterations for arm in study.arms if arm.iterations is not None}
    for where, iterations in lengths.items():
        if iterations < 1 or iterations % study.iterations_per_epoch:
            raise StudyError(
                f"{where}: {iterations} iterations are no whole number of epochs of {study.iterations_per_epoch}; "
                "change iterations or iterations_per_epoch."
            )


def _check_arm(arm: Arm, study: Study, where: str) -> None:
    for key in ("pseudo_labels_from", "by_labeled"):
        if arm.all_labels and getattr(arm, key):
            raise StudyError(f"{where}: {key} has no meaning with all_labels, which leaves no case without a label.")
    if strange := sorted(set(arm.by_labeled) - set(map(str, study.labeled))):
        raise StudyError(f"{where}: by_labeled {strange[0]!r} is no number of labelled cases here.")
    plain = {other.name for other in study.arms if not other.all_labels and other.pseudo_labels_from is None}
    if arm.pseudo_labels_from is not None and arm.pseudo_labels_from not in plain:
        raise StudyError(f"{where}: pseudo_labels_from should name a plain arm, not {arm.pseudo_labels_from!r}.")


def _check_configuration(configuration: Configuration, where: str) -> None:
    name, planned = configuration.name, configuration.inherits_from
    for key in ("patch_size", "features", "spacing", "batch_size"):
        value = getattr(configuration, key)
        if value is None:
            continue
        if planned is None:
            raise StudyError(
                f"{where}: {key} has no effect without inherits_from: name there the planned configuration that is to be "
                f"changed, such as 3d_fullres, and give this one a name of its own."
            )
        if min(value, default=0) <= 0 if isinstance(value, tuple) else value <= 0:
            raise StudyError(f"{where}: {key} should be above 0, not {shown(value)}.")
    if planned == name:
        raise StudyError(f"{where}: name and inherits_from are both {name!r}: give this configuration a name of its own.")
    if configuration.features is not None and len(configuration.features) < 3:
        # of the lowest resolution that has a loss nnU-Net makes the weight 0; with two stages that is the only one
        raise StudyError(
            f"{where}: features should be three or more, not {shown(configuration.features)}: the loss of a network with fewer "
            f"stages is no number."
        )
