"""Preprocessing of unlabelled cases: nnU-Net's own preprocessor, case by case, in parallel, and interruptible anywhere.

A case is written into a temporary folder beside the finished ones, read back, moved into place, and recorded last. So a
killed run leaves at most a temporary folder, which the next run removes. Several runs at
once (two folds started together, several nodes) do no harm: each starts at another case and skips what has been done meanwhile.
"""

import errno
import os
import platform
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from tqdm import tqdm

from nnunet_caml.errors import StorageError, WorkerError, is_full
from nnunet_caml.images import check_files, check_images, check_voxels, unset_variable
from nnunet_caml.states import STATE_FOLDER, CaseState, read_sources, renewed_sources, voxel_digest
from nnunet_caml.unlabeled import UnlabeledDataError, UnlabeledDataset
from nnunet_caml.workers import pool

TEMPORARY_PREFIX = "tmp-"


def preprocess_case(dataset: UnlabeledDataset, case: str, files: Sequence[Path]) -> bool:
    """Preprocesses one case, unless it is done already.

    Returns:
        Whether there was something to do.

    Raises:
        UnlabeledDataError: A sentence that says what is wrong with the case.
        StorageError: What concerns all cases: the disk is full.
        OSError: Likewise: the folder may not be written to.
    """
    if not needs_work(dataset, case, files):
        return False
    # containers may share the number of a process, and the file system
    name = f"{TEMPORARY_PREFIX}{case}@{uuid4().hex[:8]}@{host()}@{os.getpid()}"
    temporary = dataset.folder / STATE_FOLDER / name
    geometry = ""
    try:
        check_files(case, files)
        sources = read_sources(files)  # of what is read now, even if somebody replaces it meanwhile
        geometry = f", {check_images(case, files, dataset)}"
        temporary.mkdir(parents=True)
        manager = dataset.configuration_manager
        preprocessor = manager.preprocessor_class(verbose=False)
        with single_blosc_thread():
            preprocessor.run_case_save(
                str(temporary / case), [str(f) for f in files], None, dataset.plans_manager, manager, dataset.dataset_json
            )
        data_class = infer_dataset_class(str(temporary))
        # Reading back what was written finds a file cut short by a full disk.
        data = data_class(str(temporary), [case]).load_case(case)[0]
        check_voxels(f"Unlabelled case {case} ({files[0]}{geometry})", data)
        content = voxel_digest(data)
        written = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
        outdated = dataset.state_file(case).is_file()
        if not needs_work(dataset, case, files):  # another run was faster, and may train with it already
            return False
        if outdated:
            dataset.state_file(case).unlink(missing_ok=True)
        for name in written:
            (temporary / name).replace(dataset.folder / name)
        CaseState(dataset.fingerprint(), sources, content, written).write(dataset.state_file(case))
    except UnlabeledDataError:
        raise
    except Exception as error:
        if is_full(temporary, error):
            free = shutil.disk_usage(dataset.folder).free
            raise StorageError(
                f"There is no space left in {dataset.folder} while preprocessing unlabelled case {case} ({free / 2**30:.2f} "
                f"GiB free). The cases finished so far are kept: free some space and start again."
            ) from None
        if isinstance(error, OSError) and str(error.filename).startswith(str(dataset.folder)):
            raise  # no fault of the case's files
        if isinstance(error, PermissionError):
            raise UnlabeledDataError(
                f"{error.filename} of unlabelled case {case} cannot be opened ({error.strerror}). Make it readable or remove "
                f"the case."
            ) from None
        raise UnlabeledDataError(
            f"Unlabelled case {case} ({files[0]}{geometry}) cannot be preprocessed to the spacing "
            f"{tuple(dataset.configuration_manager.spacing)} of the plans: {type(error).__name__}: {error}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


@contextmanager
def single_blosc_thread() -> Iterator[None]:
    """Blosc2 writes its blocks in the order in which its threads finish them; with one thread, files are reproducible."""
    before = os.environ.get("BLOSC_NTHREADS")
    os.environ["BLOSC_NTHREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["BLOSC_NTHREADS"]
        else:
            os.environ["BLOSC_NTHREADS"] = before


def host() -> str:
    """Name of all processes among which a process's number means one: a machine's, or those of a container on it."""
    namespace = Path("/proc/self/ns/pid")
    return platform.node() + (f"-{namespace.stat().st_ino}" if namespace.exists() else "")


def is_leftover(temporary: Path) -> bool:
    """Whether nobody is writing to a temporary folder any more."""
    _, node, process = temporary.name.rsplit("@", 2)
    if os.name == "posix" and node == host() and process.isdigit():
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False
    # of another machine: it cannot be asked, and no case takes a day
    try:
        return time.time() - temporary.stat().st_mtime > 86400
    except FileNotFoundError:  # its owner has just finished
        return False


def needs_work(dataset: UnlabeledDataset, case: str, files: Sequence[Path]) -> bool:
    """Whether a raw case is not preprocessed yet, or was with other plans or from other files, or is not whole any more.

    Raw files whose time has changed are read, and if they are the same, their new time is recorded.
    """
    state = CaseState.read(dataset.state_file(case))
    if state is None or state.fingerprint != dataset.fingerprint() or state.damaged(dataset.folder):
        return True
    if all(f.is_file() for f in files):
        try:
            sources = renewed_sources(state.sources, files)
        except OSError:  # that it cannot be read is reported when the case is done anew
            return True
        if sources is not None and sources != state.sources:
            state.renew(dataset.state_file(case), sources)
        return sources is None
    # A missing raw file is reported when the case is done anew, not when it was done before the file went.
    return any(f.name not in state.sources for f in files)


def preprocess(
    dataset: UnlabeledDataset, processes: int, part: int = 0, parts: int = 1, say: Callable[[str], None] = print
) -> int:
    """Preprocesses all raw unlabelled cases that are not done yet, and removes what killed runs have left.

    Args:
        dataset: See there.
        processes: Worker processes, at least 1.
        part: Which share of the cases to do, as in ``nnUNetv2_predict``; from 0.
        parts: Into how many shares the cases are divided.
        say: Takes a sentence on what somebody has to know.

    Returns:
        How many cases this run has done; others may have been done by another one meanwhile.

    Raises:
        UnlabeledDataError: Naming every case that is no good. All others have been done by then.
        StorageError: If the disk is full, or nothing may be written. What was done until then is kept.
    """
    raw = dataset.raw_cases()
    if gone := dataset.follow_raw(raw):
        say(f"{len(gone)} preprocessed case(s) are no longer among the raw ones and are not used any more: {', '.join(gone)}.")
    cases = dict(list(raw.items())[part::parts])
    # of a copy of the raw data with other times all files are read
    looked_at = tqdm(cases.items(), desc="Looking for changed unlabelled cases", unit="case", leave=False, delay=2)
    todo = [(case, files) for case, files in looked_at if needs_work(dataset, case, files)]
    absent = sorted(
        set(cases) - {case for case, _ in todo} - {c for c, files in cases.items() if all(f.is_file() for f in files)}
    )
    if 0 < len(absent) < len(cases):  # all of them: raw data of another machine
        paths = (str(file) for case in absent for file in cases[case] if not file.is_file())
        unset = sorted({name for name in map(unset_variable, paths) if name})
        mend = f"Set and export {', '.join(unset)}, which dataset.json uses" if unset else "Remove the case(s)"
        say(
            f"WARNING: raw files of {len(absent)} unlabelled case(s) are missing, which are used as they were preprocessed "
            f"before: {', '.join(absent)}. {mend}, or put back the files."
        )
    state = dataset.folder / STATE_FOLDER
    for temporary in state.glob(f"{TEMPORARY_PREFIX}*@*@*"):
        if is_leftover(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
    if not todo:
        return 0
    make_writable(state, [case for case, _ in todo])
    # Runs at the same time begin at different cases and so share the work.
    start = random.SystemRandom().randrange(len(todo))
    order = todo[start:] + todo[:start]
    bar = tqdm(total=len(order), desc="Preprocessing unlabelled cases", unit="case")
    problems: dict[str, UnlabeledDataError] = {}
    done = 0
    with bar:
        for case, outcome in finished_cases(dataset, order, min(processes, len(todo))):
            bar.update()
            if isinstance(outcome, UnlabeledDataError):
                problems[case] = outcome
            else:
                done += outcome
    if problems:
        # one and the same thing may be wrong with all of them
        lines = "\n".join(f"  - {line}" for line in dict.fromkeys(str(problems[case]) for case in sorted(problems)))
        others = "; the others are preprocessed" if len(problems) < len(cases) else ""
        raise UnlabeledDataError(f"{len(problems)} of {len(cases)} unlabelled cases cannot be used{others}:\n{lines}")
    return done


def make_writable(state: Path, todo: Sequence[str]) -> None:
    """Makes the folder of the states of preprocessed cases, or raises ``StorageError`` that says which cases need it."""
    probe = state / f"{TEMPORARY_PREFIX}probe@{uuid4().hex[:8]}@{host()}@{os.getpid()}"
    try:
        state.mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        full = is_full(state, error)
        if not full and error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        some = ", ".join([*todo[:3], "..."] if len(todo) > 3 else todo)
        elsewhere = "Run `nnunet-caml preprocess` on a machine, or as a user, that may write there"
        raise StorageError(
            f"{len(todo)} unlabelled case(s) ({some}) are not preprocessed yet, or have changed since, and nothing "
            f"{'can' if full else 'may'} be written to {state.parent} ({os.strerror(error.errno or errno.ENOSPC)}). "
            f"{'Free some space there' if full else elsewhere}, or take the case(s) away."
        ) from None


def finished_cases(
    dataset: UnlabeledDataset, cases: Sequence[tuple[str, list[Path]]], processes: int
) -> Iterator[tuple[str, bool | UnlabeledDataError]]:
    """Preprocesses cases and yields each with what :func:`preprocess_case` returns or says, in the order they are finished."""

    def outcome(work: Callable[[], bool]) -> bool | UnlabeledDataError:
        try:
            return work()
        except UnlabeledDataError as error:
            return error
        except SystemExit:  # Ctrl-C, of which a worker has heard first
            raise KeyboardInterrupt from None

    if processes == 1:  # here and now: a worker takes longer to start than many a case
        for case, files in cases:
            yield case, outcome(partial(preprocess_case, dataset, case, files))
        return
    workers = pool(processes)
    try:
        pending = {workers.submit(preprocess_case, dataset, case, files): case for case, files in cases}
        for future in as_completed(pending):
            yield pending[future], outcome(future.result)
    except BrokenProcessPool:
        raise WorkerError(
            f"A worker process died while preprocessing unlabelled cases, most likely because memory ran out with "
            f"{processes} processes. The cases finished so far are kept: run `nnunet-caml preprocess` with a smaller -np, or "
            f"nnUNetv2_train with a smaller nnUNet_def_n_proc."
        ) from None
    finally:
        workers.shutdown(wait=True, cancel_futures=True)
