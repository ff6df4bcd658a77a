"""Arms of kept figures beside each other, of one study or of two."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import wilcoxon
from study_helpers import write_figures

import compare_kept
import learning_curves
from study.commands import Workspace
from study.description import StudyError
from study.kept import keep

WORDS = {
    "data": {"converter": "decathlon.py", "source": "x", "development": 2},
    "labeled": [4],
    "configuration": {"name": "3d_fullres"},
    "iterations": 1000,
    "arms": {
        "plain": {"trainer": "nnUNetTrainer"},
        "CAML": {"trainer": "nnUNetTrainerCAML"},
        "all": {"trainer": "nnUNetTrainer", "all_labels": True},
    },
}
SHORT = {("CAML", 0): [0.5, 0.6, 0.7, 0.8, 0.9, 0.7, 0.6], ("CAML", 1): [0.7, 0.6, 0.5, 0.8, 0.7, 0.9, 0.6]}
LONG = {("plain", 0): [0.4, 0.65, 0.5, 0.75, 0.8, 0.72, 0.5], ("all", 0): [0.9] * 7}


@pytest.fixture
def two_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, name in (("STUDIES", "studies"), ("KEPT", "results")):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(learning_curves, constant, tmp_path / name)
    for name, change, figures in (
        ("short", {"subsets": [0, 1]}, SHORT),
        ("long", {"iterations": 2000}, LONG),
        ("other", {"test_time_augmentation": False}, LONG),
        ("fewer", {}, {("plain", 0): [0.5] * 6}),
    ):
        path = tmp_path / "studies" / f"{name}.json"
        path.write_text(json.dumps({**WORDS, **change}), encoding="utf-8")
        s = replace(learning_curves.read_study(path), name=name)
        work = Workspace(tmp_path / "work" / name, tmp_path)
        for run in s.runs():
            if (dice := figures.get((run.arm.name, run.subset))) is not None:
                write_figures(work, run, dice)
        keep(s, work, tmp_path / "results")


def test_by_the_subsets_that_both_have(two_studies: None):
    said = compare_kept.compare(("short", "CAML"), ("long", "plain"), 4)
    ours, theirs = SHORT["CAML", 0], LONG["plain", 0]
    assert said.splitlines()[:2] == ["0.686  CAML (short)", "0.617  plain (long)"]
    assert "subsets 0: 5 of 7 cases are better with the first, the median by +0.1000" in said
    assert f"p = {wilcoxon([a - b for a, b in zip(ours, theirs, strict=True)]).pvalue:.2g} " in said


def test_with_all_labels_by_every_subset(two_studies: None):
    said = compare_kept.compare(("short", "CAML"), ("long", "all"), 4)
    assert said.splitlines()[:2] == ["0.686  CAML (short)", "0.900  all (long)"]
    assert "subsets 0, 1: 0 of 7 cases" in said


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (("other", "plain"), "short and other cannot be compared: their predictions differ, mirrored or not"),
        (("long", "CAML"), "long has no figures of CAML"),
        (("long", "none"), "the study of long has no arm 'none'; there are plain, CAML, all"),
        (("fewer", "plain"), "CAML and plain were measured on different cases"),
        (("nothing", "plain"), "nothing is no folder of kept figures"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(two_studies: None, monkeypatch, capsys, second: tuple[str, str], words: str):
    with pytest.raises(StudyError, match=words):
        compare_kept.compare(("short", "CAML"), second, 4)
    monkeypatch.setattr(sys, "argv", ["compare_kept.py", "short", "CAML", *second, "--labeled", "4"])
    assert compare_kept.main() == 1
    assert capsys.readouterr().err.startswith("compare_kept.py: ")


def test_subsets_of_which_none_is_in_both(two_studies: None, tmp_path: Path):
    for file in (tmp_path / "results" / "short").glob("*subset0*"):
        file.unlink()
    with pytest.raises(StudyError, match="CAML and plain have no labelled subset and seed in common with 4 labelled cases"):
        compare_kept.compare(("short", "CAML"), ("long", "plain"), 4)


def test_a_training_with_all_labels_adds_no_subset(two_studies: None, tmp_path: Path):
    """It is kept as of subset 0, which the other arm may not have."""
    for file in (tmp_path / "results" / "short").glob("*subset0*"):
        file.unlink()
    for arms in ((("short", "CAML"), ("long", "all")), (("long", "all"), ("short", "CAML"))):
        assert "4 labelled cases, subsets 1: " in compare_kept.compare(*arms, 4)
    assert "4 labelled cases: 0 of 7" in compare_kept.compare(("long", "all"), ("long", "all"), 4)


def test_figures_of_the_repository(monkeypatch, capsys):
    short, long = "hippocampus_screen_test_mirrored", "hippocampus_long_test_mirrored"
    monkeypatch.setattr(sys, "argv", ["compare_kept.py", short, "CAML", long, "labelled only, as much time", "--labeled", "4"])
    assert compare_kept.main() == 0
    assert "subsets 0, 1, 2: 23 of 40 cases" in capsys.readouterr().out
