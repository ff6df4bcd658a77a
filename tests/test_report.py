"""What a study's report says, of figures made up here."""

import json
import math
from pathlib import Path

import numpy as np
from study_helpers import study, write_figures

from study import report
from study.commands import Workspace
from study.description import Arm
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
