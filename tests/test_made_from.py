"""A study file that was changed after its results were made."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from study_helpers import study, write_figures

from study import made_from
from study.commands import Measurement, Workspace
from study.description import Arm, Configuration, Data, StudyError


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


def test_what_was_never_begun_may_change(tmp_path: Path):
    work = Workspace(tmp_path, tmp_path)
    made_from.record(study(), work, study().runs())
    other = study(iterations=150, iterations_per_epoch=25)
    made_from.record(other, work, other.runs())
    written = json.loads((tmp_path / "made_from.json").read_text(encoding="utf-8"))
    assert written["arms"]["CAML"]["iterations"] == 150


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
