"""What a study's report says, of figures made up here."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from study_helpers import study, write_figures

from study import report
from study.commands import Workspace
from study.description import Arm, Run
from study.kept import keep
from study.runs import metrics_file, model_folder
from study.schedules import COST


def test_every_figure_is_under_its_header(tmp_path: Path):
    s, work = study(labeled=(4,), arms=(Arm("plain", "nnUNetTrainer"),)), Workspace(tmp_path, tmp_path)
    file = metrics_file(work, s.runs()[0])
    file.parent.mkdir()
    lines = ["case,class,dice,jaccard,hd95_mm,asd_mm,hd95_voxels,asd_voxels"]
    lines += [f"c{i},organ,0.{i}1,0.{i}2,{i}.3,{i}.4,{i}.5,{i}.6" for i in (1, 2, 3)]
    file.write_text("\n".join(lines), encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in report.table(s, work, report.collect(s, work)).splitlines() if "| " in line]
    found = {header.strip(): cell.strip() for header, cell in zip(*rows, strict=True)}
    # three values a step apart: their standard deviation is the step, and Student's t is 4.303 for two degrees of freedom
    assert found["Dice, over cases"] == "0.210 ± 0.248"
    assert found["Dice, over runs"] == "0.210"
    assert found["Jaccard"] == "0.220 ± 0.248"
    assert found["HD95 mm"] == "2.300 ± 2.484"
    assert found["ASD mm"] == "2.400 ± 2.484"
    assert (found["arm"], found["labelled"], found["runs"], found["undefined"]) == ("plain", "4", "1", "0")


def test_table_and_figures(tmp_path: Path):
    """Of figures made up here: paired test, intervals, undefined distances."""
    s, work = study(labeled=(4,)), Workspace(tmp_path, tmp_path)
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.6, 0.8, 12)
    for run in s.runs():
        for auxiliary in (False, True) if run.arm.auxiliary else (False,):
            better = 0.05 * (run.arm.name == "CAML")
            lines = ["case,class,dice,jaccard,hd95_mm,asd_mm,hd95_voxels,asd_voxels"]
            lines += [f"c{i},organ,{d + better},0.5,{'nan' if i == 0 else 3.0},1.0,3.0,1.0" for i, d in enumerate(truth)]
            file = metrics_file(work, run, auxiliary)
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(lines) + "\n")
    results = report.collect(s, work)
    text = report.table(s, work, results)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["arm", "labelled only", "CAML", "CAML (A)"]
    assert rows[1][3].startswith(f"{truth.mean():.3f} ± ")
    assert rows[2][3].startswith(f"{truth.mean() + 0.05:.3f} ± ")
    assert rows[1][8] == "1"
    assert float(rows[2][9]) < 0.01
    report.figures.learning_curve(s, report.case_means(results), tmp_path / "curve.png")
    report.figures.arms(s, report.case_means(results), tmp_path / "arms.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_kept_figures_stand_in_for_runs_that_are_not_here(tmp_path: Path):
    s, there, here = study(labeled=(4, 8)), Workspace(tmp_path / "there", tmp_path), Workspace(tmp_path / "here", tmp_path)
    four, eight = (next(r for r in s.runs() if r.arm.name == "labelled only" and r.labeled == n) for n in (4, 8))
    write_figures(there, four, [0.1111111, 0.5])
    write_figures(there, eight, [0.2, 0.6])
    write_figures(here, eight, [0.3, 0.7])
    folder = model_folder(s, there, eight) / "fold_all"
    folder.mkdir(parents=True)
    (folder / COST).write_text(json.dumps({"step_s": 0.25, "training_s": 300, "peak_memory_bytes": 2**31}), encoding="utf-8")
    assert len(keep(s, there, tmp_path / "kept")) == 3
    key = ("labelled only", 4, four.subset, four.seed)
    assert key not in report.collect(s, here)
    found = report.collect(s, here, tmp_path / "kept")
    assert [row["dice"] for row in found[key]] == [0.111111, 0.5]
    assert math.isnan(found[key][0]["asd_voxels"])
    assert [row["dice"] for row in found["labelled only", 8, eight.subset, eight.seed]] == [0.3, 0.7], "its own come first"
    assert list(report.collect(s, here, tmp_path / "kept", [four])) == [key]
    text = report.write(s, Workspace(tmp_path / "nothing", tmp_path), tmp_path / "kept")
    assert "0.306" in text
    assert "- 1 before this was written down" in (tmp_path / "nothing/report/summary.md").read_text(encoding="utf-8")
    averaged = text.split("Every run by itself")[0]
    assert [row.endswith("| 0.250 | 5 | 2.0 |") for row in averaged.splitlines() if "labelled only | " in row] == [False, True]


def test_a_p_compares_the_same_subsets(tmp_path: Path):
    """An arm that has one more subset than the first arm is compared on those that both have."""
    s, work = study(labeled=(4,), subsets=(0, 1)), Workspace(tmp_path, tmp_path)
    truth = np.random.default_rng(0).uniform(0.6, 0.8, 12)
    for run in s.runs():
        if run.arm.name == "labelled only" and run.subset == 0:
            write_figures(work, run, list(truth))
        if run.arm.name == "CAML":
            write_figures(work, run, list(truth + (0.0 if run.subset == 0 else 0.1)))
    lines = report.table(s, work, report.collect(s, work)).splitlines()
    row = next(line for line in lines if line.startswith("| CAML |"))
    assert row.split("|")[10].strip() == "-", "no difference on subset 0, which is all that both have"
    for run in s.runs():
        if run.arm.name == "labelled only" and run.subset == 1:
            write_figures(work, run, list(truth))
    lines = report.table(s, work, report.collect(s, work), against="CAML").splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[10].strip() for line in lines if line.startswith("| ")}
    assert rows["CAML"] == "-"
    assert float(rows["labelled only"]) < 0.01


def test_every_run_by_itself(tmp_path: Path):
    """Two subsets of three cases: the plain network, CAML, and all labels."""
    arms = (Arm("plain", "nnUNetTrainer"), Arm("CAML", "nnUNetTrainerCAML"), Arm("all", "nnUNetTrainer", all_labels=True))
    s, work = study(labeled=(4,), subsets=(0, 1), arms=arms), Workspace(tmp_path, tmp_path)
    dice = {
        ("plain", 0): [0.1, 0.6, 0.8],
        ("plain", 1): [0.3, 0.8, 0.8],
        ("CAML", 0): [0.5, 0.7, 0.8],
        ("CAML", 1): [0.5, 0.9, 0.6],
        ("all", 0): [0.8, 0.9, 1.0],
    }
    for run in s.runs():
        write_figures(work, run, dice[run.arm.name, run.subset])
    results = report.collect(s, work)
    text = report.runs_table(s, results)
    header, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert found["plain"]["Dice of each run"] == "0.500, 0.633"
    assert found["plain"]["median gain of a case"] == found["all"]["cases better"] == "-"
    caml = found["CAML"]
    assert caml["Dice of each run"] == "0.667, 0.667"
    assert caml["lowest Dice of a case"] == "0.50, 0.50"
    assert caml["cases below 0.7"] == "1, 2"
    # means of the cases: 0.2, 0.7, 0.8 become 0.5, 0.8, 0.7
    assert (caml["median gain of a case"], caml["cases better"]) == ("+0.1000", "2 of 3")
    # 0.567 becomes 0.667 where all labels have 0.9; the distances made up here are the same everywhere
    assert caml["% of the way to all labels: Dice, HD95, ASD"] == "30, -, -"
    assert "| CAML |" in report.runs_table(s, {k: v for k, v in results.items() if k[0] != "all"})


def cells(text: str) -> dict[str, dict[str, str]]:
    """Cells of a table by arm and header."""
    header, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def write_rows(work: Workspace, run: Run, rows: list[tuple[str, str, float, float]]) -> None:
    """Figures made up here: case, class, Dice, and HD95, which is the ASD as well."""
    lines = ["case,class,dice,jaccard,hd95_mm,asd_mm,hd95_voxels,asd_voxels"]
    lines += [f"{case},{name},{dice},0.5,{d},{d},{d},{d}" for case, name, dice, d in rows]
    file = metrics_file(work, run)
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("misses", ["a class of some cases", "a subset"])
def test_missing_a_structure_is_no_gain_in_distances(tmp_path: Path, misses: str):
    """They are undefined then, and what is left is the easy part."""
    arms = (Arm("plain", "nnUNetTrainer"), Arm("B", "nnUNetTrainer", {"x": 1}), Arm("all", "nnUNetTrainer", all_labels=True))
    s, work = study(labeled=(4,), subsets=(0, 1), arms=arms), Workspace(tmp_path, tmp_path)
    for run in s.runs():
        rows = []
        for i in range(12):
            for name, dice, d in (("easy", 0.9, 2.0 + 0.1 * i), ("hard", 0.6, 9.0 + 0.1 * i)):
                missed = name == "hard" and i % 2 if misses.startswith("a class") else run.subset == 1
                better = 0.5 if run.arm.all_labels else 1.0
                is_b = run.arm.name == "B"
                rows.append((f"c{i}", name, 0.0 if missed and is_b else dice, math.nan if missed and is_b else better * d))
        write_rows(work, run, rows)
    results = report.collect(s, work)
    found, runs = cells(report.table(s, work, results)), cells(report.runs_table(s, results))
    assert found["B"]["undefined"] != "0"
    assert "read HD95 and ASD with their number" in report.table(s, work, results)
    assert runs["B"]["p of HD95"] == "-", "where both are defined there is no difference"
    dice, hd95, asd = runs["B"]["% of the way to all labels: Dice, HD95, ASD"].split(", ")
    assert (hd95, asd) == ("0", "0")
    assert runs["B"]["cases better"] == "0 of 12"


def test_the_way_to_all_labels_is_that_of_equal_trainings(tmp_path: Path):
    """Of every seed, and as many iterations."""
    arms = (
        *(Arm("plain", "nnUNetTrainer"), Arm("B", "nnUNetTrainer"), Arm("longer", "nnUNetTrainer", iterations=200)),
        *(Arm("all", "nnUNetTrainer", all_labels=True), Arm("all, longer", "nnUNetTrainer", all_labels=True, iterations=200)),
    )
    s, work = study(labeled=(4,), seeds=(0, 1), arms=arms), Workspace(tmp_path, tmp_path)
    for run in s.runs():
        dice = {"plain": 0.5, "B": 0.6, "longer": 0.7, "all": 0.7 + 0.2 * run.seed, "all, longer": 0.9}[run.arm.name]
        write_rows(work, run, [(f"c{i}", "organ", dice, 3.0) for i in range(3)])
    results = report.collect(s, work)
    column = "% of the way to all labels: Dice, HD95, ASD"
    assert {arm: row[column] for arm, row in cells(report.runs_table(s, results)).items()} == {
        **{"plain": "-", "B": "33, -, -", "longer": "-", "all": "-", "all, longer": "-"}
    }
    s = replace(s, arms=(*arms, Arm("longer too", "nnUNetTrainer", iterations=200)))
    for run in s.runs():
        if run.arm.name == "longer too":
            write_rows(work, run, [(f"c{i}", "organ", 0.8, 3.0) for i in range(3)])
    against = cells(report.runs_table(s, report.collect(s, work), "longer"))
    assert against["longer too"][column] == "50, -, -"


def test_what_arms_are_compared_with_need_not_be_shown(tmp_path: Path):
    arms = (*study().arms, Arm("all", "nnUNetTrainer", all_labels=True))
    s, work = study(labeled=(4,), arms=arms), Workspace(tmp_path, tmp_path)
    truth = np.random.default_rng(0).uniform(0.6, 0.8, 12)
    for run in s.runs():
        write_figures(work, run, list(truth + {"labelled only": 0.0, "CAML": 0.05, "all": 0.1}[run.arm.name]))
    caml = [run for run in s.runs() if run.arm.name == "CAML"]
    text = report.write(s, work, selected=caml)
    averaged, runs = text.split("Every run by itself")
    assert "| labelled only |" not in text
    assert float(cells(averaged)["CAML"]["p"]) < 0.01
    assert cells(runs)["CAML"]["cases better"] == "12 of 12"
    assert cells(runs)["CAML"]["% of the way to all labels: Dice, HD95, ASD"] == "50, -, -"
    below = report.write(s, work, selected=caml, against="all").split("Every run by itself")[1]
    assert cells(below)["CAML"]["cases better"] == "0 of 12"
    metrics_file(work, s.runs()[0]).unlink()
    assert "against labelled only (which is not measured)" in report.write(s, work, selected=caml)


def test_cases_that_only_one_arm_has(tmp_path: Path):
    s, work = study(labeled=(4,)), Workspace(tmp_path, tmp_path)
    for run in s.runs():
        write_figures(work, run, [0.5] * 8 if run.arm.name == "labelled only" else [0.6] * 9)
    assert cells(report.runs_table(s, report.collect(s, work)))["CAML"]["cases better"] == "8 of 8"


def test_an_arm_that_is_called_like_a_network_a_is_itself(tmp_path: Path):
    """Where that network is not measured, a name says nothing."""
    bound = Arm("CAML (A)", "nnUNetTrainer", all_labels=True)
    s = study(labeled=(4,), arms=(bound, Arm("CAML", "nnUNetTrainerCAML")))
    work = Workspace(tmp_path, tmp_path)
    for run, dice in zip(s.runs(), ([0.8, 0.9], [0.5, 0.6]), strict=True):
        write_figures(work, run, dice)
    pair = report.Comparison(s, "CAML (A)", report.collect(s, work)).pair("dice", "CAML", 4, [(0, 0)])
    assert pair == ({"c0": 0.5, "c1": 0.6}, {"c0": 0.8, "c1": 0.9})
