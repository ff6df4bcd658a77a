"""What a study found: tables, CSV and figures, of whatever is there."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from study import figures
from study.commands import Workspace
from study.description import Run, Study
from study.kept import kept_file, known_cost
from study.metrics import METRICS, read_metrics
from study.provenance import summary
from study.runs import is_done, is_trained, iteration_seconds, metrics_file

__all__ = ["plan", "write"]

#: a Dice below which a case counts as missed in large part
LOW = 0.7
HEADERS = [
    *("arm", "labelled", "runs", "Dice, over cases", "Dice, over runs", "Jaccard", "HD95 mm", "ASD mm", "undefined", "p"),
    *("s/step", "training min", "peak GiB"),
]
RUN_HEADERS = [
    *("arm", "labelled", "Dice of each run", "lowest Dice of a case", f"cases below {LOW}", "median gain of a case"),
    *("cases better", "% of the way to all labels: Dice, HD95, ASD", "p of HD95"),
]


def plan(study: Study, work: Workspace, selected: list[Run], jobs: int) -> str:
    """What is left to do, and how long it takes where a run of the same arm has been timed already."""
    left = [run for run in selected if not is_done(work, run)]
    lengths = _lengths(study, {run.arm.name for run in selected})
    lines = [f"Study {study.name}: {len(selected)} runs of {lengths}, {len(selected) - len(left)} of them done."]
    untrained = [run for run in left if not is_trained(study, work, run)]
    timed = {run.arm.name: iteration_seconds(study, work, run.arm) for run in untrained}
    unknown = sorted(name for name, seconds in timed.items() if seconds is None)
    seconds = sum((timed[run.arm.name] or 0.0) * study.epochs(run.arm) * study.iterations_per_epoch for run in untrained)
    if measured := len(left) - len(untrained):
        lines.append(f"{measured} trained models are left to be measured.")
    if seconds:
        lines.append(f"About {seconds / 3600 / jobs:.1f} hours of training with {jobs} side by side, as timed here.")
    if unknown:
        lines.append(f"Not timed yet, which a start without --plan begins with: {', '.join(unknown)}.")
    return "\n".join(lines)


def _lengths(study: Study, names: set[str]) -> str:
    """The iterations of a training, and those of the named arms that have a number of their own."""
    others = [f"{arm.name}: {arm.iterations}" for arm in study.arms if arm.name in names and arm.iterations is not None]
    return f"{study.iterations} iterations" + (f" ({', '.join(others)})" if others else "")


def write(
    study: Study, work: Workspace, kept: Path | None = None, selected: list[Run] | None = None, against: str | None = None
) -> str:
    """Writes ``report/`` and returns the tables.

    ``cases.csv`` has every case of every run, ``summary.md`` the tables and what the trainings were made with, the pictures
    are named after what they show.

    Args:
        study: What was compared.
        work: Where it was run.
        kept: Folder of kept figures, which stand in for runs that are not finished here.
        selected: In the tables, the learning curve and the bars; all runs, if not given.
        against: Arm that the others are compared with; the first one, if not given.
    """
    folder = work.measured("report")
    folder.mkdir(exist_ok=True)
    everything = collect(study, work, kept)  # what arms are compared with need not be shown
    results = collect(study, work, kept, selected)
    if not results:
        return "No run is finished yet."
    _write_csv(folder / "cases.csv", results)
    text = f"{table(study, work, results, kept, against, everything)}\n\n{runs_table(study, results, against, everything)}"
    finished = [run for run in study.runs() if (run.arm.name, run.labeled, run.subset, run.seed) in results]
    origin = summary(cost for run in finished if (cost := known_cost(study, work, run, kept)))
    (folder / "summary.md").write_text(f"{text}\n\n{origin}\n", encoding="utf-8")
    figures.learning_curve(study, case_means(results), folder / "learning_curve.png")
    figures.arms(study, case_means(results), folder / "arms.png")
    figures.training_curves(study, work, folder / "training.png")
    figures.saturation(study, work, folder / "occ.png")
    figures.gallery(study, work, case_means(results), folder / "gallery.png")
    return f"{text}\n\nMore in {folder}"


def collect(
    study: Study, work: Workspace, kept: Path | None = None, selected: list[Run] | None = None
) -> dict[tuple[str, int | None, int, int], list[dict[str, Any]]]:
    """Rows of all finished runs by arm, number of labelled cases, subset and seed; A's under ``"ARM (A)"``."""
    results = {}
    for run in study.runs() if selected is None else selected:
        for auxiliary in (False, True) if run.arm.auxiliary else (False,):
            path = metrics_file(work, run, auxiliary)
            if kept is not None and not path.is_file():
                path = kept_file(study, work, run, auxiliary, kept)
            if path.is_file():
                name = f"{run.arm.name} (A)" if auxiliary else run.arm.name
                results[name, run.labeled, run.subset, run.seed] = read_metrics(path)
    return results


def case_means(results: dict, metric: str = "dice") -> dict[tuple[str, int | None, int, int], dict[str, float]]:
    """Mean over the classes, per case; classes where the metric is not defined are left out."""
    means = {}
    for key, rows in results.items():
        cases = defaultdict(list)
        for row in rows:
            cases[row["case"]].append(row[metric])
        means[key] = {c: float(np.nanmean(v)) if np.isfinite(v).any() else float("nan") for c, v in cases.items()}
    return means


def _write_csv(path: Path, results: dict) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "labeled", "subset", "seed", "case", "class", *METRICS])
        for key, rows in results.items():
            for row in rows:
                writer.writerow([*("all" if k is None else k for k in key), *row.values()])


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % confidence interval (Student's t)."""
    v = np.asarray([x for x in values if np.isfinite(x)])
    if len(v) < 2:
        return f"{v.mean():.3f}" if len(v) else "-"
    half = stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v))
    return f"{v.mean():.3f} ± {half:.3f}"


def table(
    study: Study,
    work: Workspace,
    results: dict,
    kept: Path | None = None,
    against: str | None = None,
    everything: dict | None = None,
) -> str:
    """A Markdown table: a row per arm and number of labelled cases; costs are medians of the runs that have any.

    The arm that the others are compared with may be in ``everything`` alone.
    """
    means = {metric: case_means(results, metric) for metric in METRICS}
    groups = _groups(results)
    reference = against or study.arms[0].name
    compare = Comparison(study, reference, everything or results)
    lengths = _lengths(study, {arm for arm, _ in groups})
    lines = [
        f"{study.name}: {lengths}, configuration {study.configuration.name}, last checkpoint, "
        + ("development cases" if study.data.development and not work.measurement.test else "test cases")
        + f"{work.measurement.words}. Mean ± half of the 95 % interval; p: Wilcoxon signed rank test of the cases against "
        + f"{compare}, both averaged over subsets and seeds."
        + " Where a class is missed altogether distances are undefined, and left out: read HD95 and ASD with their number."
        * any(not np.isfinite(row["hd95_mm"]) for rows in results.values() for row in rows),
        "",
        "| " + " | ".join(HEADERS) + " |",
        "|---" * len(HEADERS) + "|",
    ]
    for (arm, labeled), members in groups.items():
        keys = [(arm, labeled, *member) for member in members]
        per_case = {metric: over_runs(means[metric], keys) for metric in METRICS}
        per_run = [float(np.nanmean(list(means["dice"][key].values()))) for key in keys]
        undefined = sum(1 for key in keys for row in results[key] if not np.isfinite(row["hd95_mm"]))
        pair = compare.pair("dice", arm, labeled, members)
        cells = [arm, "all" if labeled is None else str(labeled), str(len(keys))]
        cells += [interval(list(per_case["dice"].values())), interval(per_run)]
        cells += [interval(list(per_case[metric].values())) for metric in ("jaccard", "hd95_mm", "asd_mm")]
        cells += [str(undefined), paired(*pair) if pair else "-"]
        of_row = [r for r in study.runs() if (r.arm.name, r.labeled) == (arm, labeled) and (r.subset, r.seed) in members]
        cells += costs([cost for r in of_row if (cost := known_cost(study, work, r, kept))])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def runs_table(study: Study, results: dict, against: str | None = None, everything: dict | None = None) -> str:
    """A Markdown table of what :func:`table` averages: every run by itself, in the order of subsets and seeds.

    Beside it, against the arm that the others are compared with: the median of the cases' gains in Dice, how many cases gain,
    and how much of the difference between that arm and all labels is gone, which is rough where it is small. That is told
    where all three were trained for as many iterations.
    """
    means = case_means(results)
    reference = against or study.arms[0].name
    compare = Comparison(study, reference, everything or results)
    lines = [
        f"Every run by itself, in the order of subsets and seeds; gains and p against {compare}.",
        "",
        "| " + " | ".join(RUN_HEADERS) + " |",
        "|---" * len(RUN_HEADERS) + "|",
    ]
    for (arm, labeled), members in _groups(results).items():
        keys = [(arm, labeled, *member) for member in members]
        runs = [np.asarray(list(means[key].values())) for key in keys]
        cells = [arm, "all" if labeled is None else str(labeled)]
        cells += [", ".join(f"{np.nanmean(run):.3f}" for run in runs), ", ".join(f"{np.nanmin(run):.2f}" for run in runs)]
        cells.append(", ".join(str((run < LOW).sum()) for run in runs))
        pairs = {metric: compare.pair(metric, arm, labeled, members) for metric in ("dice", "hd95_mm", "asd_mm")}
        if pair := pairs["dice"]:
            gains = np.asarray([pair[0][case] - pair[1][case] for case in pair[0]])
            cells += [f"{np.median(gains):+.4f}", f"{(gains > 0).sum()} of {len(gains)}"]
        else:
            cells += ["-", "-"]
        way = [percent for metric in pairs if (percent := compare.way(metric, arm, labeled, members))]
        cells += [", ".join(way) or "-", paired(*pairs["hd95_mm"]) if pairs["hd95_mm"] else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _groups(results: dict) -> dict[tuple[str, int | None], list[tuple[int, int]]]:
    """Subset and seed of the runs of an arm with a number of labelled cases."""
    groups = defaultdict(list)
    for arm, labeled, subset, seed in results:
        groups[arm, labeled].append((subset, seed))
    return dict(groups)


class Comparison:
    """Arms beside another one, by what is defined for both: a distance to a class that one of them misses is not.

    Args:
        study: Whose arms they are.
        reference: Name of the arm that the others are compared with.
        results: From :func:`collect`.
    """

    def __init__(self, study: Study, reference: str, results: dict) -> None:
        self.arms = {f"{arm.name} (A)": arm for arm in study.arms} | {arm.name: arm for arm in study.arms}
        self.study, self.reference, self.results = study, reference, results

    def __str__(self) -> str:
        measured = any(key[0] == self.reference for key in self.results)
        return self.reference + " (which is not measured)" * (not measured)

    def pair(
        self, metric: str, arm: str, labeled: int | None, members: list[tuple[int, int]]
    ) -> tuple[dict[str, float], dict[str, float]] | None:
        """Means by case of ``arm`` and of the reference, over the subsets and seeds that both have; ``None`` without such."""
        found = self._together(metric, labeled, members, [arm, self.reference]) if arm != self.reference else {}
        ours, theirs = ({case: values[i] for case, values in found.items()} for i in (0, 1))
        return (ours, theirs) if found else None

    def way(self, metric: str, arm: str, labeled: int | None, members: list[tuple[int, int]]) -> str:
        """Percent of the difference between the reference and all labels that ``arm`` has behind it.

        Empty without any of the three, or where they were not trained for as many iterations.
        """
        epochs = self.study.epochs(self.arms[arm])
        bounds = [a.name for a in self.study.arms if a.all_labels and self.study.epochs(a) == epochs]
        compared = arm != self.reference and not self.arms[arm].all_labels
        if not compared or not bounds or self.study.epochs(self.arms[self.reference]) != epochs:
            return ""
        found = self._together(metric, labeled, members, [arm, self.reference, bounds[0]])
        if not found:
            return ""
        reached, start, end = np.mean(list(found.values()), axis=0)
        return str(round(100 * (reached - start) / (end - start))) if end != start else "-"

    def _together(
        self, metric: str, labeled: int | None, members: list[tuple[int, int]], names: list[str]
    ) -> dict[str, tuple[float, ...]]:
        """By case, the mean of each arm over what is defined in the runs of all of them."""
        values: dict[str, list[list[float]]] = defaultdict(list)
        for subset, seed in members:
            keys = [(name, None, 0, seed) if self.arms[name].all_labels else (name, labeled, subset, seed) for name in names]
            if not all(key in self.results for key in keys):
                continue
            rows = [{(row["case"], row["class"]): row[metric] for row in self.results[key]} for key in keys]
            for entry in rows[0]:
                if all(np.isfinite(of_arm.get(entry, np.nan)) for of_arm in rows):
                    values[entry[0]].append([of_arm[entry] for of_arm in rows])
        return {case: tuple(np.mean(entries, axis=0)) for case, entries in values.items()}


def costs(known: list[dict[str, Any]]) -> list[str]:
    """Cells of the table: seconds a step, minutes of training, GiB of memory, each the median."""
    units = {"step_s": (1, ".3f"), "training_s": (60, ".0f"), "peak_memory_bytes": (2**30, ".1f")}
    values = {key: [cost[key] for cost in known if key in cost] for key in units}
    return [format(float(np.median(values[key])) / unit, form) if values[key] else "-" for key, (unit, form) in units.items()]


def over_runs(means: dict, keys: list) -> dict[str, float]:
    """Mean over runs, per case."""
    cases = defaultdict(list)
    for key in keys:
        for case, value in means[key].items():
            cases[case].append(value)
    return {case: float(np.nanmean(v)) if np.isfinite(v).any() else float("nan") for case, v in cases.items()}


def paired(a: dict[str, float], b: dict[str, float]) -> str:
    """Two-sided p of the Wilcoxon signed rank test over the cases that both have."""
    both = [case for case in a if case in b and np.isfinite(a[case]) and np.isfinite(b[case])]
    difference = np.asarray([a[case] - b[case] for case in both])
    if len(both) < 6 or not difference.any():
        return "-"
    return f"{stats.wilcoxon(difference).pvalue:.2g}"
