"""What a study file may say: each entry that cannot be meant is refused when the file is read, in a sentence that names it."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_run_study import WORDS

from study.description import StudyError, read_study
from study.schedules import trainer_classes, trainer_name

PLAIN = WORDS["arms"]["plain"]
SMALLER = {"name": "3d_small", "inherits_from": "3d_fullres"}


def data(**change: Any) -> dict[str, Any]:
    return {"data": {**WORDS["data"], **change}}


def smaller(**change: Any) -> dict[str, Any]:
    return {"configuration": {**SMALLER, **change}}


def arm(**change: Any) -> dict[str, Any]:
    return {"arms": {"plain": PLAIN, "x": {**PLAIN, **change}}}


def read(folder: Path, change: dict[str, Any]):
    file = folder / "mine.json"
    file.write_text(json.dumps({**WORDS, **change}), encoding="utf-8")
    return read_study(file)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labeled": 8}, "labeled should be a list of whole numbers, not 8."),
        ({"labeled": 0}, "labeled should be a list of whole numbers, not 0."),
        ({"labeled": ["8"]}, 'labeled should be a list of whole numbers, not ["8"].'),
        ({"labeled": [2.0]}, "labeled should be a list of whole numbers, not [2.0]."),
        ({"labeled": [True]}, "labeled should be a list of whole numbers, not [true]."),
        ({"labeled": []}, "labeled should be one or more different whole numbers from 1, not []."),
        ({"labeled": [0]}, "labeled should be one or more different whole numbers from 1, not [0]."),
        ({"labeled": [8, -2]}, "labeled should be one or more different whole numbers from 1, not [8, -2]."),
        ({"labeled": [8, 8]}, "labeled should be one or more different whole numbers from 1, not [8, 8]."),
        ({"subsets": 0}, "subsets should be a list of whole numbers, not 0."),
        ({"subsets": []}, "subsets should be one or more different whole numbers from 0, not []."),
        ({"seeds": ["a"]}, 'seeds should be a list of whole numbers, not ["a"].'),
        ({"seeds": [-1]}, "seeds should be one or more different whole numbers from 0, not [-1]."),
        ({"iterations": "8"}, 'iterations should be a whole number, not "8".'),
        ({"iterations": 100.0}, "iterations should be a whole number, not 100.0."),
        ({"iterations_per_epoch": 0}, "iterations_per_epoch should be a whole number from 1, not 0."),
        ({"iterations_per_epoch": -50}, "iterations_per_epoch should be a whole number from 1, not -50."),
        ({"test_time_augmentation": "no"}, 'test_time_augmentation should be true or false, not "no".'),
        ({"arms": ["x"]}, 'arms should be an object, not ["x"].'),
        ({"arms": {"x": "nnUNetTrainer"}}, 'arm x should be an object, not "nnUNetTrainer".'),
        ({"arms": {"x": {}}}, "arm x: 'trainer' is missing."),
        (arm(name="y"), "arm x: 'name' is unknown; there are all_labels, "),
        (arm(attributes=["lambda_c"]), 'arm x: attributes should be an object, not ["lambda_c"].'),
        (arm(by_labeled={"4": 0.5}), 'arm x: by_labeled should be an object of objects, not {"4": 0.5}.'),
        (arm(all_labels="false"), 'arm x: all_labels should be true or false, not "false".'),
        (arm(iterations="8"), 'arm x: iterations should be a whole number or null, not "8".'),
        (arm(all_labels=True, pseudo_labels_from="plain"), "arm x: pseudo_labels_from has no meaning with all_labels"),
        (arm(all_labels=True, by_labeled={"4": {}}), "arm x: by_labeled has no meaning with all_labels"),
        ({"data": None}, "data should be an object, not null."),
        (data(source=3), "data: source should be a text, not 3."),
        (data(arguments="--test 3"), 'data: arguments should be a list of texts, not "--test 3".'),
        (data(development=-2), "data: development should be a whole number from 0, not -2."),
        ({"configuration": "3d_fullres"}, 'configuration should be an object, not "3d_fullres".'),
        (smaller(patch_size=[16, 16, 0]), "configuration: patch_size should be above 0, not [16, 16, 0]."),
        (smaller(batch_size=0), "configuration: batch_size should be above 0, not 0."),
        (smaller(batch_size=2.0), "configuration: batch_size should be a whole number or null, not 2.0."),
        (smaller(spacing=["1", 1, 1]), 'configuration: spacing should be a list of numbers or null, not ["1", 1, 1].'),
        (smaller(spacing=[float("nan"), 1, 1]), "configuration: spacing should be a list of numbers or null, not [NaN, 1, 1]."),
        (smaller(features=[4, 8]), "configuration: features should be three or more, not [4, 8]: "),
        (smaller(name="3d_fullres"), "configuration: name and inherits_from are both '3d_fullres': "),
    ],
)
def test_an_entry_that_cannot_be_meant(tmp_path: Path, change: dict[str, Any], sentence: str):
    with pytest.raises(StudyError) as error:
        read(tmp_path, change)
    assert str(error.value).startswith(f"{tmp_path / 'mine.json'}")
    assert sentence in str(error.value)


@pytest.mark.parametrize("key", ["spacing", "patch_size", "features", "batch_size"])
def test_a_change_to_a_planned_configuration_needs_a_name_of_its_own(tmp_path: Path, key: str):
    change = {"spacing": [1.5, 2, 2], "patch_size": [16, 16, 16], "features": [4, 8, 8], "batch_size": 2}[key]
    with pytest.raises(StudyError, match=f"configuration: {key} has no effect without inherits_from: name there the planned"):
        read(tmp_path, {"configuration": {"name": "3d_fullres", key: change}})
    assert getattr(read(tmp_path, smaller(**{key: change})).configuration, key) is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"trainer": "nnUNetTrainerCMAL"}, "trainer 'nnUNetTrainerCMAL' is unknown; there are nnUNetTrainer, "),
        ({"auxiliary": True}, "auxiliary should be false with nnUNetTrainer, which has no network A."),
        ({"attributes": {"train_step": 3}}, "'train_step' of nnUNetTrainer is no setting: "),
        ({"attributes": {"__doc__": "a"}}, "'__doc__' of nnUNetTrainer is no setting: "),
        ({"by_labeled": {"4": {"initialize": True}}}, "'initialize' of nnUNetTrainer is no setting: "),
    ],
)
def test_what_a_trainer_does_not_have(tmp_path: Path, change: dict[str, Any], sentence: str):
    with pytest.raises(StudyError) as error:
        trainer_classes(read(tmp_path, arm(**change)))
    assert str(error.value).startswith(f"arm x: {sentence}")


@pytest.mark.parametrize(
    ("key", "wrong", "words", "right"),
    [
        ("lambda_c", "1", 'a number, not "1"', 1),
        ("lambda_c", True, "a number, not true", 0.5),
        ("lambda_c", float("nan"), "a number, not NaN", 1e-3),
        ("memory_per_class", 64.0, "a whole number, not 64.0", 64),
        ("clean_view", 1, "true or false, not 1", True),
        ("consistency", None, "a text, not null", "sharpened"),
    ],
)
def test_a_setting_keeps_its_type(tmp_path: Path, key: str, wrong: Any, words: str, right: Any):
    caml = {"trainer": "nnUNetTrainerCAML"}
    for change in ({"attributes": {key: wrong}}, {"by_labeled": {"4": {key: wrong}}}):
        with pytest.raises(StudyError, match=f"^arm x: {key} of nnUNetTrainerCAML should be {words}.$"):
            trainer_classes(read(tmp_path, arm(**caml, **change)))
    study = read(tmp_path, arm(**caml, attributes={key: right}))
    assert f"    {key} = {right!r}" in trainer_classes(study)[trainer_name(study.runs()[-1])]
    trainer_classes(read(tmp_path, arm(**caml, attributes={"epochs": 5})))  # whose default is None


def test_no_arm_is_called_like_the_network_a_of_another_one(tmp_path: Path):
    """Their figures would be taken for each other's."""
    caml = {"trainer": "nnUNetTrainerCAML"}
    with pytest.raises(StudyError, match=r"CAML \(A\) is what the figures of a network A are called; "):
        read(tmp_path, {"arms": {"CAML": {**caml, "auxiliary": True}, "CAML (A)": caml}})
    read(tmp_path, {"arms": {"CAML": caml, "CAML (A)": caml}})


def test_two_arms_do_not_share_a_class(tmp_path: Path):
    """Their models would be in the same folder."""
    arms = {"CAML": {"trainer": "nnUNetTrainerCAML", "by_labeled": {"2": {"lambda_c": 9}}}, "CAML 2": PLAIN}
    with pytest.raises(StudyError, match=r"^arms CAML and CAML 2 would both be trained by a class Study_CAML_2_timing: "):
        trainer_classes(read(tmp_path, {"labeled": [2, 4], "arms": arms}))
    arms["CAML, 2"] = arms.pop("CAML 2")
    with pytest.raises(StudyError, match="give one of them another name"):
        trainer_classes(read(tmp_path, {"labeled": [2, 4], "arms": arms}))
    arms["plain"] = arms.pop("CAML, 2")
    trainer_classes(read(tmp_path, {"labeled": [2, 4], "arms": arms}))
