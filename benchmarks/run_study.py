#!/usr/bin/env python
"""Runs a study: data sets, trainings, predictions, figures, all through nnU-Net's command line.

A study that was interrupted or killed goes on where it was when the same command is given again. What the study compares
is in its file; see benchmarks/README.md.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import replace
from pathlib import Path
from threading import Event

from nnunet_caml.conversion.errors import ConversionError
from nnunet_caml.demo.commands import CommandError
from study import data, kept, made_from, report, runs
from study.commands import FOLDERS, Measurement, Workspace
from study.description import Run, Study, StudyError, read_study
from study.schedules import trainer_classes, write_trainers

STUDIES = Path(__file__).resolve().parent / "studies"


def main() -> int:
    """Parses the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study file, or the name of one in benchmarks/studies")
    parser.add_argument("-o", "--output", type=Path, help="work folder (default: study_output/NAME, NAME_gpu with cuda)")
    parser.add_argument("--shared", type=Path, help="folder of the source data (default: $NNUNET_CAML_SHARED/data)")
    parser.add_argument("--jobs", type=at_least(1), default=1, metavar="N", help="trainings side by side (default: 1)")
    parser.add_argument("--threads", type=at_least(1), default=1, metavar="N", help="threads of each on a CPU (default: 1)")
    parser.add_argument(
        "--workers", type=at_least(0), metavar="N", help="processes that load data of each (default: 0, cuda: by cores)"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="run these arms only")
    parser.add_argument("--labeled", nargs="+", type=int, metavar="N", help="with these numbers of labelled cases only")
    parser.add_argument("--subsets", nargs="+", type=int, metavar="SEED", help="with these labelled subsets only")
    parser.add_argument("--against", metavar="ARM", help="p compares with this arm (default: the first)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--no-timing", action="store_true", help="begin without the few iterations that tell how long it takes")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--plan", action="store_true", help="say what would be done and how long it takes, and stop")
    instead.add_argument("--report", action="store_true", help="report what is there, run nothing")
    instead.add_argument(
        "--keep", action="store_true", help="write the figures of finished runs to benchmarks/results, and stop"
    )
    parser.add_argument(
        "--with-kept", action="store_true", help="report: with the figures in benchmarks/results for runs that are not here"
    )
    parser.add_argument(
        "--test",
        action="store_true",
        help="measure on the test cases instead of the development cases, once, when all choices are made",
    )
    parser.add_argument(
        "--mirrored",
        action=argparse.BooleanOptionalAction,
        help="measure what nnUNetv2_predict gives, or with --disable_tta, for a study that predicts in the other way",
    )
    parser.add_argument(
        "--largest",
        action="store_true",
        help="measure the largest component of each class, which nnU-Net's post-processing keeps where that helps",
    )
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, end)
    shared = options.shared or Path(os.environ.get("NNUNET_CAML_SHARED", "../shared")) / "data"
    try:
        study = read_study(study_file(options.study))
        if options.test and not study.data.development:
            raise StudyError(f"--test: {study.name} has no development cases, it is measured on the test cases anyway.")
        if options.mirrored is study.test_time_augmentation:
            option, how = ("--mirrored", "with") if options.mirrored else ("--no-mirrored", "without")
            raise StudyError(f"{option}: {study.name} predicts {how} mirroring anyway.")
        gpu = f"{study.name}_gpu"  # whose figures are not to be mixed with those of a CPU, though they may be measured on one
        if options.device == "cuda" or (options.output is not None and options.output.name == gpu):
            study = replace(study, name=gpu)
        if not (options.plan or options.report or options.keep or shared.is_dir()):
            raise StudyError(f"{shared} is no folder: say with --shared or NNUNET_CAML_SHARED where the data are.")
        if not (options.report or options.keep):
            data.check(study)
        selected = select(study, options.arms, options.labeled, options.subsets)
        if options.against is not None and options.against not in (names := [arm.name for arm in study.arms]):
            raise StudyError(f"--against {options.against}: the study {study.name} has {', '.join(names)}.")
        output = options.output or Path("study_output") / study.name
        workers = workers_of(options.device, options.jobs) if options.workers is None else options.workers
        measurement = Measurement(options.test, options.mirrored, options.largest)
        work = Workspace(output, shared, options.device, options.threads, workers, measurement)
        os.environ.update({name: work.variables[name] for name in FOLDERS})  # nnU-Net asks for them when it is imported
        trainer_classes(study)  # a report needs none of them, and tells of a mistaken one all the same
        made_from.check(study, work)
        if options.plan:
            print(report.plan(study, work, selected, options.jobs))
        elif options.keep:
            written = kept.keep(study, work, kept.KEPT, selected)
            print(f"{len(written)} files written to {kept.KEPT / work.measured(study.name).name}.")
        else:
            if not options.report:
                run(study, work, selected, options.jobs, not options.no_timing)
            shown, figures = selected if options.report else None, kept.KEPT if options.with_kept else None
            print(report.write(study, work, figures, shown, options.against))
    except (StudyError, CommandError, ConversionError) as error:
        print(f"run_study.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, missing rights
        what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        print(f"run_study.py: {what.removesuffix('.')}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def end(*_: object) -> None:
    """Ends what has been started, as Ctrl-C does; signals that follow, as where a terminal is closed, would disturb that."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which a command would have as well
    raise KeyboardInterrupt


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number, and not below ``least``."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"should be a whole number from {least}, not {text!r}")
        return int(text)

    return number


def workers_of(device: str, jobs: int) -> int:
    """Processes that load labelled patches of a training, as far as cores are left; as many again load unlabelled ones."""
    return 0 if device == "cpu" else max(1, min(12, ((os.cpu_count() or 1) - jobs) // (2 * jobs)))


def study_file(study: str) -> Path:
    """The file of a study, given by itself or by a name in ``benchmarks/studies``."""
    kept = STUDIES / f"{study}.json"
    return kept if kept.is_file() and not Path(study).is_file() else Path(study)


def select(
    study: Study, names: list[str] | None = None, labeled: list[int] | None = None, subsets: list[int] | None = None
) -> list[Run]:
    """A part of the runs, or all; an arm comes with the one that it has its pseudo-labels from.

    Raises:
        StudyError: There is no such arm, number of labelled cases or subset.
    """
    asked = {"arms": names, "labeled": labeled, "subsets": subsets}
    known = {"arms": [arm.name for arm in study.arms], "labeled": study.labeled, "subsets": study.subsets}
    for option, values in asked.items():
        for value in values or []:
            if value not in known[option]:
                there = ", ".join(map(str, known[option]))
                raise StudyError(f"--{option} {value}: the study {study.name} has {there}.")
    teachers = {arm.pseudo_labels_from for arm in study.arms if not names or arm.name in names}
    return [
        run
        for run in study.runs()
        if (not names or run.arm.name in names or run.arm.name in teachers)
        and (run.labeled is None or ((not labeled or run.labeled in labeled) and (not subsets or run.subset in subsets)))
    ]


def run(study: Study, work: Workspace, selected: list[Run], jobs: int, timing: bool = True) -> None:
    """Does all that is left to do, ``jobs`` runs side by side; with ``timing``, first a few iterations of every arm."""
    made_from.record(study, work, selected)
    write_trainers(study, work.trainers)
    with work.alone("the data"):
        data.prepare(study, work, selected)
    if timing:
        runs.time_arms(study, work, selected)
    print(report.plan(study, work, selected, jobs), flush=True)
    finished, failed = {r.name: Event() for r in selected}, Event()

    def one(r: Run) -> None:
        first = r.arm.pseudo_labels_from
        if first is not None:
            for other in selected:
                same = (other.labeled, other.subset, other.seed) == (r.labeled, r.subset, r.seed)
                if other.arm.name == first and same:
                    finished[other.name].wait()
        try:
            if not failed.is_set():
                runs.execute(study, work, r)
        except BaseException:
            failed.set()  # this thread begins with the next run before anybody else can tell it not to
            raise
        finally:
            finished[r.name].set()

    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(one, r) for r in selected]
            try:
                for future in as_completed(futures):
                    future.result()
            except Exception as error:
                if jobs > 1:
                    print(f"run_study.py: {error} What runs beside it is finished first.", file=sys.stderr, flush=True)
                wait(futures)  # of which those that have not begun do nothing
                raise
        except KeyboardInterrupt:
            work.stop.set()  # nobody else tells commands of a signal that was meant for this process
            pool.shutdown(wait=False, cancel_futures=True)
            raise


if __name__ == "__main__":
    sys.exit(main())
