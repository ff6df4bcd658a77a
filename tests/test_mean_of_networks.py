"""The mean of both networks at prediction, of several runs; on trained models in ``test_study.py``."""

import json
from pathlib import Path

import pytest
from study_helpers import write_figures
from test_compare_kept import WORDS

import mean_of_networks
from study.commands import Workspace
from study.description import read_study
from study.runs import metrics_file


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_every_run_has_its_column(tmp_path: Path, seeds: list[int]):
    file = tmp_path / "short.json"
    file.write_text(json.dumps({**WORDS, "subsets": [0, 1], "seeds": seeds}), encoding="utf-8")
    study = read_study(file)
    work = Workspace(tmp_path / "work", tmp_path)
    runs = [run for run in study.runs() if run.arm.name == "CAML"]
    files = {}
    for number, run in enumerate(runs):
        write_figures(work, run, [number / 10 + 0.1] * 7)
        files[mean_of_networks.title(study, run)] = dict.fromkeys(mean_of_networks.NETWORKS, metrics_file(work, run))
    head, _, *rows = mean_of_networks.table(files).splitlines()
    assert head.count("subset") == len(runs) == 2 * len(seeds)
    mean = sum(number / 10 + 0.1 for number in range(len(runs))) / len(runs)
    assert all(f"| {mean:.3f} |" in row for row in rows)
