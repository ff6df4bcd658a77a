"""Pools of worker processes that leave nothing behind, however the process that started them ends."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, get_start_method, parent_process
from typing import Any

__all__ = ["end_with", "pool"]


def pool(processes: int) -> ProcessPoolExecutor:
    """A pool whose workers end with this process, and without a word on Ctrl-C.

    Spawned, not forked: torch and ITK have threads, of which a fork may inherit a locked lock.
    """
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start, initargs=(os.getpid(),))


def _start(parent: int) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of a command that a script has put into the background
        signal.signal(signal.SIGINT, _leave)
    end_with(parent)


def _leave(*_: Any) -> None:
    sys.exit(130)  # what is done at the time is tidied up, as after any exception


def end_with(parent: int) -> None:
    """Ends this process within a second after ``parent``, the number of the process that started it.

    A process that is killed tells nobody, and its workers would wait for work for ever.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while _lives(parent):
        time.sleep(1)
    os._exit(1)


def _lives(parent: int) -> bool:
    worked_for = parent_process()
    # Python's default on Linux since 3.14: a server starts workers, and need not end with the process that they work for
    if worked_for is not None and get_start_method() == "forkserver":
        return worked_for.is_alive()
    return os.getppid() == parent  # is_alive() is wrong for forked ones, which hold open for each other what it looks at
