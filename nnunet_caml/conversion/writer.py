"""Writes a data set in nnU-Net's raw format."""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import SimpleITK as sitk
from tqdm import tqdm

import nnunet_caml
from nnunet_caml.conversion.cases import Case, Dataset, Split
from nnunet_caml.conversion.errors import ConversionError
from nnunet_caml.conversion.onecase import FOLDERS, Task, convert_or_explain, remove
from nnunet_caml.conversion.reading import SUPPORTED, ending_of, read_image
from nnunet_caml.conversion.summary import Report, Summary
from nnunet_caml.workers import end_with

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UNLABELED_KEY = "unlabeled"  # nnunet_caml.unlabeled.DATASET_KEY, whose module takes seconds to import


def convert(
    dataset: Dataset,
    cases: Sequence[Case],
    split: Split,
    raw: Path,
    dataset_id: int,
    *,
    link: bool = False,
    overwrite: bool = False,
    skip_broken: bool = False,
    preview: bool = False,
    processes: int = 8,
    source: Path | None = None,
    command: str = "",
) -> Summary:
    """Writes ``raw/DatasetXXX_<name>``, whole or not at all.

    Args:
        dataset: What the cases have in common.
        cases: All cases, of every kind.
        split: Which of them are labelled, unlabelled and test cases.
        raw: nnU-Net's folder of raw data sets, ``$nnUNet_raw``.
        dataset_id: 1 to 999.
        link: Link files that need no conversion instead of copying them.
        overwrite: Replace the data set if it is there.
        skip_broken: Leave out cases that cannot be converted instead of giving up.
        preview: Write ``preview.png``.
        processes: Worker processes; 1 works in this process.
        source: The source folder, which must not lie in a data set that gets replaced.
        command: For ``split.json``.

    Raises:
        ConversionError: The data set exists and is not to be overwritten, its id is taken, or a case is broken.
    """
    target = target_folder(raw, dataset_id, dataset.name, overwrite)
    if source is not None and target.resolve() in [source.resolve(), *source.resolve().parents]:
        raise ConversionError(f"{target} would replace its own source: use another --dataset-id or --name.")
    if link:
        _check_links(target, cases)
    cases = [case for case in cases if case.identifier not in split.left_out]
    ending = _common_ending(dataset, cases, split) if link else dataset.file_ending
    dataset = replace(dataset, file_ending=ending)
    with _whole_or_not_at_all(raw, dataset_id, dataset.name, overwrite) as folder:
        tasks = [Task(case, split.role(case.identifier), dataset, folder, link) for case in cases]
        reports, left_out = _run(tasks, processes, skip_broken)
        left = {role: sorted(report.identifier for report in reports if report.role == role) for role in FOLDERS}
        if not left["labeled"]:
            raise ConversionError("No labelled case is left: " + " ".join(dict.fromkeys(left_out.values())))
        left_out |= dict.fromkeys(split.left_out, "it has no label, and its patient is held out for testing")
        in_place = {report.identifier: list(report.in_place) for report in reports if report.in_place}
        write_json(folder / "dataset.json", _dataset_json(dataset, len(left["labeled"]), in_place))
        patients = {case.identifier: case.patient for case in cases if case.patient}
        write_json(
            folder / "split.json",
            {
                **left,
                **({"patients": patients} if patients else {}),
                **({"left_out": sorted(left_out)} if left_out else {}),
                "seed": split.seed,
                "command": command,
                "version": nnunet_caml.__version__,
            },
        )
        if preview:
            from nnunet_caml.conversion.preview import write_preview  # matplotlib takes a second to import

            try:
                write_preview(folder, dataset.file_ending, left, folder / "preview.png", in_place)
            except Exception as error:  # the work of hours is worth more than a picture of it
                (folder / "preview.png").unlink(missing_ok=True)
                print(f"preview.png could not be drawn: {error}", file=sys.stderr)
    labelled = [case.unit for case in cases if case.identifier in split.labeled]
    return Summary(target, dataset, reports, left_out, link, grouped=len(set(labelled)) < len(labelled))


def _check_links(target: Path, cases: Sequence[Case]) -> None:
    """Raises if a file to be linked lies in the data set that gets replaced."""
    if not target.exists():
        return
    inside = target.resolve()
    for path in (path for case in cases for path in (*case.images, *([case.label] if case.label else []))):
        if inside in path.resolve().parents:
            raise ConversionError(
                f"{path} lies in {target}, which gets replaced, and a link to it would lead nowhere: leave out --link, or "
                "use another --dataset-id or --name."
            )


def _common_ending(dataset: Dataset, cases: Sequence[Case], split: Split) -> str:
    """The ending that all source files share if nnU-Net reads it, else the data set's own."""
    if dataset.read_image is not read_image or dataset.read_label is not read_image:
        return dataset.file_ending
    files = [path for case in cases for path in case.images]
    files += [case.label for case in cases if case.label and split.role(case.identifier) != "unlabeled"]
    endings = {ending_of(path) for path in files}
    return endings.pop() if len(endings) == 1 and endings <= set(SUPPORTED) else dataset.file_ending


def target_folder(raw: Path, dataset_id: int, name: str, overwrite: bool) -> Path:
    """``raw/DatasetXXX_<name>``, if it may be written.

    Raises:
        ConversionError: The number is out of range, taken by another name, or the data set exists already.
    """
    if not 1 <= dataset_id <= 999:
        raise ConversionError(f"--dataset-id has to be from 1 to 999, got {dataset_id}.")
    target = raw / f"Dataset{dataset_id:03d}_{name}"
    # nnU-Net looks a number up in all three of its folders and refuses it if the names differ
    others = (os.environ.get(variable) for variable in ("nnUNet_preprocessed", "nnUNet_results"))
    folders = [raw, *(Path(other) for other in others if other)]
    for other in (path for folder in folders for path in sorted(folder.glob(f"Dataset{dataset_id:03d}_*"))):
        if other.is_dir() and other.name != target.name:
            raise ConversionError(f"--dataset-id {dataset_id} is taken by {other}: use another number or take it away.")
    if os.path.lexists(target) and not overwrite:  # a link to a disk that is not there is somebody's data set, too
        raise ConversionError(f"{target} exists already: add --overwrite to replace it, or use another --dataset-id.")
    return target


@contextmanager
def _whole_or_not_at_all(raw: Path, dataset_id: int, name: str, overwrite: bool) -> Iterator[Path]:
    """Gives a hidden folder beside the data set's that takes its place at the end, or is removed after an error."""
    raw.mkdir(parents=True, exist_ok=True)
    target = raw / f"Dataset{dataset_id:03d}_{name}"
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))
    with _alone(raw / f".Dataset{dataset_id:03d}.lock", target):
        if os.path.lexists(old) and not os.path.lexists(target):  # killed between the two renames below
            old.rename(target)
        target_folder(raw, dataset_id, name, overwrite)  # again, now that no other run can change the answer
        for rest in (partial, old):  # of a killed run
            _remove(rest)
            if os.path.lexists(rest):
                raise ConversionError(f"{rest}, which an earlier run left, cannot be removed: delete it, then try again.")
        partial.mkdir()
        yield from _replaced(target, partial, old)


@contextmanager
def _alone(lock: Path, target: Path) -> Iterator[None]:
    """Keeps other runs from writing data sets of this number; where the file system has no locks, nothing does."""
    if fcntl is None:
        yield
        return
    while True:
        try:
            number = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:
            if not lock.exists():  # nothing may be written here
                raise
            number = os.open(lock, os.O_RDONLY)  # somebody else's
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
            raise ConversionError(f"{target} is being written by another run: wait for it, or stop it.") from None
        except OSError:
            break
        try:
            if os.path.samestat(os.fstat(number), os.stat(lock)):
                break
        except FileNotFoundError:
            pass
        os.close(number)  # who had it has removed the file meanwhile, so a third run would lock another one
    try:
        yield
    finally:
        with suppress(OSError):  # of somebody else
            lock.unlink()
        os.close(number)


def _remove(path: Path) -> None:
    """Removes a folder, file or link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _replaced(target: Path, partial: Path, old: Path) -> Iterator[Path]:
    """Gives ``partial``, which takes the place of ``target`` when it is left without an error, and is removed otherwise."""
    try:
        yield partial
        with _undisturbed():
            if os.path.lexists(target):
                target.rename(old)
            try:
                partial.rename(target)
            except OSError:
                if os.path.lexists(old):
                    old.rename(target)
                raise
            _remove(old)
    except OSError as error:  # a full disk, missing rights
        raise ConversionError(f"{target} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM come too late here: between two renames there would be no data set, after them it is written."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears of signals
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _silent_start() -> Iterator[None]:
    """Processes started here do not hear of Ctrl-C, whose tracebacks would hide the one sentence; this one does, after it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(tasks: Sequence[Task], processes: int, skip_broken: bool) -> tuple[list[Report], dict[str, str]]:
    """Converts all cases; returns reports in the order of the tasks and the reason for each case left out."""
    for folder in sorted({task.folder / name for task in tasks for name in FOLDERS[task.role] if name}):
        folder.mkdir(exist_ok=True)
    reports: dict[str, Report] = {}
    left_out: dict[str, str] = {}
    with tqdm(total=len(tasks), desc="Converting", unit="case", disable=None) as bar:
        for task, outcome in _outcomes(tasks, min(processes, len(tasks))):
            bar.update()
            if isinstance(outcome, Report):
                reports[task.case.identifier] = outcome
            elif skip_broken:
                left_out[task.case.identifier] = outcome
                remove(task)
            else:
                raise ConversionError(outcome)
    order = [task.case.identifier for task in tasks]
    for name in {task.folder / name for task in tasks for name in FOLDERS[task.role] if name}:
        if not any(name.iterdir()):  # all its cases were left out, or test cases without labels
            name.rmdir()
    return [reports[key] for key in order if key in reports], {key: left_out[key] for key in order if key in left_out}


def _outcomes(tasks: Sequence[Task], processes: int) -> Iterator[tuple[Task, Report | str]]:
    """Yields every task with its report or error sentence, as they get done."""
    if processes <= 1:
        yield from ((task, convert_or_explain(task)) for task in tasks)
        return
    # "spawn" everywhere: forking a process that has ITK's threads can hang
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),))
    try:
        with _silent_start():
            futures = {pool.submit(convert_or_explain, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise ConversionError(
            "A worker process died, probably because the memory was used up: try again with fewer processes (-np)."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one tidies up
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    end_with(parent)


def _dataset_json(dataset: Dataset, labeled: int, in_place: Mapping[str, Sequence[Path]]) -> dict[str, object]:
    entry = {name: {"images": [str(path) for path in in_place[name]]} for name in sorted(in_place)}
    known = {"reference": dataset.reference, "licence": dataset.licence}
    return {
        "name": dataset.name,
        **{key: value for key, value in known.items() if value},
        **dataset.further,
        "channel_names": {str(number): name for number, name in enumerate(dataset.channel_names)},
        "labels": {name: value if isinstance(value, int) else list(value) for name, value in dataset.labels.items()},
        "numTraining": labeled,
        "file_ending": dataset.file_ending,
        **({UNLABELED_KEY: entry} if entry else {}),
    }


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
