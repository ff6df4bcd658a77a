"""A study file that was changed after its results were made."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from study_helpers import study, write_figures
from test_run_study import WORDS

import run_study
from study import made_from
from study.commands import FOLDERS, Measurement, Workspace
from study.data import WHOLE
from study.description import Arm, Configuration, Data, StudyError
from study.schedules import write_trainers


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    """With figures of one run of each arm."""
    work, s = Workspace(tmp_path / "output", tmp_path), study()
    made_from.record(s, work, s.runs())
    for name in ("labelled only", "CAML"):
        write_figures(work, next(run for run in s.runs() if run.arm.name == name), [0.5, 0.6])
    return work


def arms(**of_caml: object) -> tuple[Arm, ...]:
    plain, caml = study().arms
    return plain, replace(caml, **of_caml)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"iterations": 150}, "s, arm labelled only: iterations is 150, and what is in "),
        ({"arms": arms(attributes={"lambda_c": 5.0})}, 's, arm CAML: attributes is {"lambda_c": 5.0}'),
        ({"arms": arms(by_labeled={"4": {"lambda_c": 5.0}})}, "by_labeled"),
        ({"arms": arms(trainer="nnUNetTrainerCAML_noOCC")}, "trainer"),
        ({"arms": arms(all_labels=True)}, "all_labels"),
        ({"arms": arms(iterations=200)}, "iterations is 200"),
        ({"data": Data("decathlon.py", "x", ("--test", "3"))}, "data"),
        ({"configuration": Configuration("3d_lowres")}, "configuration"),
        ({"iterations_per_epoch": 25}, "iterations_per_epoch is 25"),
        ({"test_time_augmentation": False}, "test_time_augmentation is false"),
    ],
)
def test_results_are_not_shown_under_another_description(work: Workspace, change: dict, sentence: str):
    with pytest.raises(
        StudyError, match=r"made_from\.json\)\. Put it back, give the arm another name, or .* --output"
    ) as problem:
        made_from.check(study(**change), work)
    assert sentence in str(problem.value)
    with pytest.raises(StudyError):
        made_from.record(study(**change), work, study(**change).runs())
    made_from.check(study(), work)


@pytest.mark.parametrize(
    "change",
    [
        {"labeled": (4, 8, 16), "subsets": (0, 1), "seeds": (0, 1), "remark": "more of it"},
        {"arms": (*arms(auxiliary=False), Arm("more", "nnUNetTrainer", iterations=200))},
        {"arms": arms()[:1]},
    ],
)
def test_a_study_may_grow(work: Workspace, change: dict):
    grown = study(**change)
    made_from.record(grown, work, grown.runs())
    made_from.check(study(), work)
    with pytest.raises(StudyError):
        made_from.check(study(arms=arms(attributes={})), work)


def test_a_further_number_of_labelled_cases_may_have_settings_of_its_own(work: Workspace):
    grown = study(labeled=(4, 8, 16), arms=arms(by_labeled={"16": {"lambda_c": 5.0}}))
    made_from.record(grown, work, [run for run in grown.runs() if run.labeled == 4])
    write_figures(work, next(run for run in grown.runs() if run.arm.name == "CAML" and run.labeled == 16), [0.5])
    made_from.record(grown, work, [])
    made_from.check(grown, work)
    for mistaken in ({}, {"16": {"lambda_c": 1.0}}):
        with pytest.raises(StudyError, match="by_labeled"):
            made_from.check(study(labeled=(4, 8, 16), arms=arms(by_labeled=mistaken)), work)


def test_a_further_number_counts_as_soon_as_there_is_a_model(work: Workspace):
    grown = study(labeled=(4, 8, 16), arms=arms(by_labeled={"8": {"lambda_c": 5.0}}))
    made_from.check(grown, work)
    fold = work.results / "Dataset002_Labeled8Subset0" / "Study_CAML_seed0__nnUNetPlans__3d_fullres" / "fold_all"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    with pytest.raises(StudyError, match="by_labeled"):
        made_from.check(grown, work)


def test_an_arm_whose_name_ends_in_a_number_is_another_one(tmp_path: Path):
    """Not the class of the first arm for as many labelled cases."""
    work = Workspace(tmp_path, tmp_path)
    both = (Arm("CAML", "nnUNetTrainerCAML"), Arm("CAML 2", "nnUNetTrainerCAML", {"unlabeled_per_labeled": 2}))
    s = study(arms=both)
    made_from.record(s, work, s.runs())
    fold = work.results / "Dataset001_Labeled4Subset0" / "Study_CAML_2_seed0__nnUNetPlans__3d_fullres" / "fold_all"
    fold.mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    made_from.check(study(arms=(replace(both[0], trainer="nnUNetTrainer"), both[1])), work)
    with pytest.raises(StudyError, match="arm CAML 2: trainer"):
        made_from.check(study(arms=(both[0], replace(both[1], trainer="nnUNetTrainer"))), work)


def test_what_was_never_begun_may_change(tmp_path: Path):
    work = Workspace(tmp_path, tmp_path)
    made_from.record(study(), work, study().runs())
    other = study(iterations=150, iterations_per_epoch=25)
    made_from.record(other, work, other.runs())
    written = json.loads((tmp_path / "made_from.json").read_text(encoding="utf-8"))
    assert written["arms"]["CAML"]["iterations"] == 150


def test_what_another_process_does_is_not_changed_by_a_plan(tmp_path: Path, monkeypatch):
    """It would train what it comes to later with settings that nobody writes down."""
    work = Workspace(tmp_path / "output", tmp_path)
    write_trainers(study(), work.trainers)
    before = (work.trainers / "study_trainers.py").read_text(encoding="utf-8")
    (tmp_path / "s.json").write_text(json.dumps({**WORDS, "name": "s", "iterations": 150}), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["run_study.py", str(tmp_path / "s.json"), "-o", str(work.folder), "--plan"])
    for name in FOLDERS:
        monkeypatch.setenv(name, "")  # to be restored
    assert run_study.main() == 0
    assert (work.trainers / "study_trainers.py").read_text(encoding="utf-8") == before


def test_arms_that_are_not_selected_are_recorded_as_their_trainers_are_written(tmp_path: Path):
    """Another process may train them by these."""
    work, changed = Workspace(tmp_path, tmp_path), study(arms=arms(attributes={"lambda_c": 5.0}))
    made_from.record(study(), work, study().runs())
    made_from.record(changed, work, [run for run in changed.runs() if run.arm.name == "labelled only"])
    write_figures(work, next(run for run in changed.runs() if run.arm.name == "CAML"), [0.5])
    made_from.check(changed, work)
    with pytest.raises(StudyError, match="arm CAML: attributes"):
        made_from.check(study(), work)


def test_data_sets_that_are_there_are_not_taken_for_others(tmp_path: Path):
    work, other = Workspace(tmp_path, tmp_path), study(iterations=150, data=Data("decathlon.py", "x", development=2))
    made_from.record(study(), work, study().runs())
    (work.raw / "Dataset001_AllLabels").mkdir(parents=True)
    with pytest.raises(StudyError, match=r"^s: data is .*\"development\": 2"):
        made_from.record(other, work, other.runs())
    made_from.record(study(iterations=150), work, study().runs())


def test_a_number_of_development_cases_that_could_not_be_may_be_corrected(tmp_path: Path):
    """What has been converted by then holds all cases, however many they should be."""
    work, data = Workspace(tmp_path, tmp_path), Data("decathlon.py", "x", development=500)
    made_from.record(study(data=data), work, study().runs())
    (work.raw / f"Dataset001_{WHOLE}").mkdir(parents=True)
    for mistaken in (replace(data, source="y"), replace(data, development=2, arguments=("--test", "3"))):
        with pytest.raises(StudyError, match=r"^s: data is "):
            made_from.check(study(data=mistaken), work)
    made_from.record(study(data=replace(data, development=2)), work, study().runs())
    (work.raw / "Dataset002_AllLabels").mkdir()
    with pytest.raises(StudyError, match=r"^s: data is .*\"development\": 2"):
        made_from.check(study(data=data), work)


def test_a_model_that_is_not_measured_yet_counts(work: Workspace):
    """Of whatever configuration it is, and for every way to measure it."""
    fold = work.results / "Dataset001_Labeled4Subset0" / "Study_CAML_seed0__nnUNetPlans__3d_fullres" / "fold_all"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    work.measurement = Measurement(test=True)
    with pytest.raises(StudyError, match="arm CAML: attributes"):
        made_from.check(study(arms=arms(attributes={})), work)


def test_the_list_of_cases_counts_by_what_is_in_it(tmp_path: Path):
    (cases := tmp_path / "cases.txt").write_text("a\nb\n", encoding="utf-8")
    work, s = Workspace(tmp_path / "output", tmp_path), study(data=Data("decathlon.py", "x", only=str(cases)))
    made_from.record(s, work, s.runs())
    write_figures(work, s.runs()[0], [0.5])
    made_from.check(s, work)
    cases.write_text("a\nc\n", encoding="utf-8")
    with pytest.raises(StudyError, match="data is"):
        made_from.check(s, work)
