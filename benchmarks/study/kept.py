"""Figures of finished runs that are kept in the repository, so that its tables and pictures need no training."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.commands import Workspace
from study.description import Run, Study
from study.metrics import COLUMNS, read_metrics
from study.runs import metrics_file, read_cost

__all__ = ["KEPT", "keep", "kept_file", "known_cost"]

KEPT = Path(__file__).resolve().parents[1] / "results"


def kept_file(study: Study, work: Workspace, run: Run, auxiliary: bool = False, folder: Path = KEPT) -> Path:
    """Where the figures of a run are kept, if they are."""
    return folder / work.measured(study.name).name / metrics_file(work, run, auxiliary).name


def known_cost(study: Study, work: Workspace, run: Run, folder: Path | None = None) -> dict[str, Any] | None:
    """What a training cost, of a run that is here or, with ``folder``, that is kept."""
    cost = read_cost(study, work, run)
    if (
        cost is None
        and folder is not None
        and (file := kept_file(study, work, run, folder=folder).with_suffix(".json")).is_file()
    ):
        cost = json.loads(file.read_text(encoding="utf-8"))
    return cost


def keep(study: Study, work: Workspace, folder: Path = KEPT, selected: Sequence[Run] | None = None) -> list[Path]:
    """Writes figures, to six decimals, and costs of finished runs into a folder of their study; those there are replaced.

    Args:
        study: The study.
        work: Where it was run.
        folder: For the folders of studies.
        selected: Of these runs; of all, if not given.

    Returns:
        The files written.
    """
    written = []
    for run in study.runs() if selected is None else selected:
        for auxiliary in (False, True) if run.arm.auxiliary else (False,):
            source = metrics_file(work, run, auxiliary)
            if not source.is_file():
                continue
            target = kept_file(study, work, run, auxiliary, folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                for row in read_metrics(source):
                    writer.writerow([f"{v:.6f}" if isinstance(v, float) else v for v in row.values()])
            written.append(target)
            if not auxiliary and (cost := read_cost(study, work, run)):
                target.with_suffix(".json").write_text(json.dumps(cost, indent=2) + "\n", encoding="utf-8")
                written.append(target.with_suffix(".json"))
    return written
