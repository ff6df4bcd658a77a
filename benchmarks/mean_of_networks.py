#!/usr/bin/env python
"""Is predicting with both networks worth twice the time? The mean of V's and A's probabilities, beside either alone.

Of finished runs whose arm keeps A ("auxiliary"), on the cases that the study measures: the commands are nnU-Net's own,
``nnUNetv2_predict --save_probabilities`` for each network and ``nnUNetv2_ensemble`` for the mean.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from nnunet_caml.demo.commands import CommandError
from run_study import select, study_file
from study import report
from study.commands import FOLDERS, Measurement, Workspace
from study.description import Run, Study, StudyError, read_study
from study.metrics import measure, read_metrics
from study.runs import measured_data, mirrors, model_folder, predict

#: what is measured, and the end of the name of its model
NETWORKS = {"V": "", "A": "_auxiliary", "mean of V and A": None}


def main() -> int:
    """Parses the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study that has been run: its file, or the name of one in benchmarks/studies")
    parser.add_argument("--arm", default="CAML", help="of the study, with its auxiliary network (default: CAML)")
    parser.add_argument("--labeled", type=int, required=True, metavar="N", help="number of labelled cases")
    parser.add_argument("--subsets", nargs="*", type=int, metavar="SEED", help="labelled subsets (default: all)")
    parser.add_argument("--mirrored", action=argparse.BooleanOptionalAction, help="as of run_study.py")
    parser.add_argument("-o", "--output", type=Path, help="work folder of the study (default: study_output/NAME)")
    options = parser.parse_args()
    try:
        study = read_study(study_file(options.study))
        output = options.output or Path("study_output") / study.name
        work = Workspace(output, Path(), measurement=Measurement(mirrored=options.mirrored))
        os.environ.update({name: work.variables[name] for name in FOLDERS})
        runs = select(study, [options.arm], [options.labeled], options.subsets)
        for run in runs:
            for suffix in ("", "_auxiliary"):
                folder = model_folder(study, work, run, suffix)
                if not (folder / "fold_all" / "checkpoint_final.pth").is_file():
                    raise StudyError(f"{folder} has no trained model: run the study first, an arm with auxiliary.")
        files = {title(study, run): measure_networks(study, work, run) for run in runs}
    except (StudyError, CommandError) as error:
        print(f"mean_of_networks.py: {error}", file=sys.stderr)
        return 1
    print(table(files))
    return 0


def measure_networks(study: Study, work: Workspace, run: Run) -> dict[str, Path]:
    """Figures of V, of A and of their mean, as files like those of a study; what is there is not made again."""
    truth = measured_data(study, work, run)
    description = json.loads((truth / "dataset.json").read_text(encoding="utf-8"))
    classes = {k: v for k, v in description["labels"].items() if v != 0 and k != "ignore"}
    folder = work.measured("mean_of_networks") / run.name
    files = {name: folder / f"{name}.csv" for name in NETWORKS}
    with work.alone(f"{run.name}-mean"):
        if not all(file.is_file() for file in files.values()):
            predictions = {name: folder / name for name in NETWORKS}
            mirrored = mirrors(study, work)
            for name, suffix in NETWORKS.items():
                if suffix is not None:
                    predict(study, work, run, truth / "imagesTs", predictions[name], mirrored, suffix, probabilities=True)
            *single, mean = (str(path) for path in predictions.values())
            work.run(f"{run.name}-mean", ["nnUNetv2_ensemble", "-i", *single, "-o", mean, "-np", "2"])
            for name, file in files.items():
                ignore = description["labels"].get("ignore")
                measure(predictions[name], truth / "labelsTs", classes, description["file_ending"], file, ignore=ignore)
            for path in predictions.values():  # probabilities are large
                shutil.rmtree(path)
    return files


def title(study: Study, run: Run) -> str:
    """Heads the column of a run."""
    return f"subset {run.subset}" + f", seed {run.seed}" * (len(study.seeds) > 1)


def table(files: dict[str, dict[str, Path]]) -> str:
    """Dice of each run, by the heads of the columns, means over runs, and p over the cases (runs averaged) against V alone."""
    lines = [f"| | {' | '.join(files)} | Dice | HD95 mm | ASD mm | p |", f"|{'---|' * (len(files) + 5)}"]
    of_cases: dict[str, dict[str, float]] = {}
    for name in NETWORKS:
        rows = [read_metrics(of_run[name]) for of_run in files.values()]
        dice = [float(np.nanmean([row["dice"] for row in of_run])) for of_run in rows]
        other = [np.mean([np.nanmean([row[key] for row in of_run]) for of_run in rows]) for key in ("hd95_mm", "asd_mm")]
        cases = {str(row["case"]) for of_run in rows for row in of_run}
        of_cases[name] = {
            case: float(np.nanmean([row["dice"] for of_run in rows for row in of_run if row["case"] == case])) for case in cases
        }
        p = "-" if name == "V" else report.paired(of_cases[name], of_cases["V"])
        numbers = [*(f"{d:.3f}" for d in dice), f"{np.mean(dice):.3f}", *(f"{value:.2f}" for value in other), p]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
