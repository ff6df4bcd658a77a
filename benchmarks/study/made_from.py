"""What the results in a work folder were made from, lest figures of one description be shown under another.

A study file may grow: more arms, subsets and numbers of labelled cases. What has been begun may not change under it.
"""

import json
import re
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from study.commands import Workspace, replace_text
from study.data import WHOLE
from study.description import Arm, Run, Study, StudyError

__all__ = ["check", "record"]

FILE = "made_from.json"


def record(study: Study, work: Workspace, selected: list[Run]) -> None:
    """Writes down what the arms of ``selected`` are about to be made from, beside what is known of others.

    Of those that are known and not begun too: another process may train them, by the trainers as they are now.

    Raises:
        StudyError: As :func:`check`.
    """
    with work.alone(FILE):
        known = check(study, work).get("arms", {})
        names = {*known, *(run.arm.name for run in selected)}
        arms = {arm.name: _of_arm(study, arm) for arm in study.arms if arm.name in names}
        content = {"study": _of_study(study), "arms": {**known, **arms}}
        replace_text(work.folder / FILE, json.dumps(content, indent=2) + "\n")


def check(study: Study, work: Workspace) -> dict[str, Any]:
    """Compares the description with what was written down when its results were begun, and gives that.

    Nothing is known of the results of earlier versions, nor of arms of which nothing has been trained.

    Raises:
        StudyError: It has changed; the message names the entry, and what it was and is.
    """
    file = work.folder / FILE
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    begun = {arm.name: numbers for arm in study.arms if (numbers := _begun(work, arm))}
    if begun and known:
        _compare(known["study"], _of_study(study), study.name, file)
    elif known and (made := {folder.name.partition("_")[2] for folder in work.raw.glob("Dataset*")}):  # and is not made again
        before, now = known["study"]["data"], _of_study(study)["data"]
        if made == {WHOLE}:  # in which all cases are
            before = {**before, **{key: now[key] for key in ("development", "development_seed")}}
        _compare({"data": before}, {"data": now}, study.name, file)
    for arm in study.arms:
        if arm.name in begun and arm.name in known.get("arms", {}):
            numbers = begun[arm.name]
            before, now = _settled(known["arms"][arm.name], numbers), _settled(_of_arm(study, arm), numbers)
            _compare(before, now, f"{study.name}, arm {arm.name}", file)
    return known


def _settled(described: dict[str, Any], numbers: set[str]) -> dict[str, Any]:
    """Of an arm, without its settings for numbers of labelled cases with which nothing has been begun."""
    return {**described, "by_labeled": {n: value for n, value in described["by_labeled"].items() if n in numbers}}


def _begun(work: Workspace, arm: Arm) -> set[str]:
    """Numbers of labelled cases with which there is a model or a figure of an arm, whatever its runs were then."""
    begun = {file.name.split("-")[1] for file in work.measured("metrics").glob(f"{arm.slug}-*.csv")}
    for file in work.results.glob("*/*/fold_all/checkpoint_*.pth"):
        labeled = re.search(r"Labeled(\d+)Subset", file.parents[2].name)
        number = labeled[1] if labeled else "all"
        if re.fullmatch(rf"Study_{arm.slug}(_{number})?_seed\d+__.*", file.parents[1].name):
            begun.add(number)
    return begun


def _compare(before: dict[str, Any], now: dict[str, Any], where: str, file: Path) -> None:
    for key in before.keys() | now.keys():
        if before.get(key) != now.get(key):
            raise StudyError(
                f"{where}: {key} is {json.dumps(now.get(key))}, and what is in {file.parent} was made with "
                f"{json.dumps(before.get(key))} ({file.name}). Put it back, give the arm another name, or another --output."
            )


def _of_study(study: Study) -> dict[str, Any]:
    data = asdict(study.data)
    if study.data.only is not None:
        data["only"] = sha256(Path(study.data.only).read_bytes()).hexdigest()
    described = {"data": data, "configuration": asdict(study.configuration)}
    described |= {key: getattr(study, key) for key in ("iterations_per_epoch", "test_time_augmentation")}
    return json.loads(json.dumps(described))  # tuples are lists there


def _of_arm(study: Study, arm: Arm) -> dict[str, Any]:
    described = {key: value for key, value in asdict(arm).items() if key not in ("name", "iterations", "auxiliary")}
    described["iterations"] = study.epochs(arm) * study.iterations_per_epoch
    return json.loads(json.dumps(described))
