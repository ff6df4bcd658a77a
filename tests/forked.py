"""Console scripts in processes forked from one that has imported what takes seconds to import, and has run nothing.

So a command costs no start of Python, and still has a process of its own: what threads, signal handlers and locales the
test process has collected (nnU-Net forks, too, which deadlocks with some of them) does not reach it. Nor does a worker
that the command spawns cost one, which is most of what a command of a tiny data set costs: it is forked from the same
process, and gets what a spawned one inherits, environment and output.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from multiprocessing import context as contexts
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

from nnunet_caml.startup import add_discovery_folder

PRELOADED = [
    *("nnunetv2.run.run_training", "nnunetv2.inference.predict_from_raw_data", "nnunet_caml.trainer", "skimage.io"),
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    # whoever searches for a trainer imports all, and these import the most
    "nnunetv2.training.nnUNetTrainer.primus.primus_trainers",
]
# nnU-Net reads it when it is imported, which is after this; to start pools takes longer than the tests' tiny cases
os.environ.setdefault("nnUNet_def_n_proc", "1")
# OpenMP reads it when torch is imported, here and in the forkserver. Where cores are busy, threads that wait actively take
# what the others need: a test of seconds takes minutes then.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(PRELOADED)


class CommandFailed(AssertionError):
    """A command ended with another status than 0; the message is its output."""


def start(function: Callable[..., None], arguments: Sequence[object], environment: dict[str, str], log: Path) -> BaseProcess:
    """Starts a function in a process of its own.

    Args:
        function: One of a module.
        arguments: What it is called with.
        environment: All variables of its process and those that this spawns.
        log: Gets the output, both streams as one.

    Returns:
        The process.
    """
    forkserver.ensure_running()
    process = context.Process(target=_surrounded, args=(function, arguments, environment, str(log), _server()))
    process.start()
    return process


def call(command: list[str], environment: dict[str, str], log: Path) -> str:
    """Runs the function of a console script.

    Args:
        command: Name of the script, and its arguments.
        environment: All of its variables.
        log: Gets the output, both streams as one.

    Returns:
        The output.

    Raises:
        CommandFailed: The command did.
    """
    process = start(_run, [command], environment, log)
    process.join()
    output = log.read_text(encoding="utf-8", errors="replace")
    if process.exitcode:
        raise CommandFailed(f"{' '.join(command)}\n{output}")
    return output


def _server() -> dict[str, object]:
    """What a process has to know of the one that others are forked from; private to the standard library, 3.10 to 3.14."""
    names = ("_forkserver_address", "_forkserver_authkey")  # the latter from 3.14 on
    return {name: getattr(forkserver._forkserver, name) for name in names if hasattr(forkserver._forkserver, name)}  # type: ignore[attr-defined]


def _surround(environment: dict[str, str], log: str, mode: int = 0) -> None:
    """Gives this process its environment variables, and a file for its output."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | mode)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)


class _Worker(contexts.ForkServerProcess):
    """A process that a command spawns."""

    log = ""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._surroundings = (dict(os.environ), _Worker.log)

    def run(self) -> None:
        _surround(*self._surroundings)
        multiprocessing.set_start_method("forkserver", force=True)  # which tells a worker of ours whose end to look for
        super().run()


class _Spawning(contexts.ForkServerContext):
    """Takes the place of the context that spawns."""

    Process = _Worker


def _surrounded(
    function: Callable[..., None], arguments: Sequence[object], environment: dict[str, str], log: str, server: dict[str, object]
) -> None:
    # a forkserver's processes start theirs with a forkserver of their own, which would import everything once more; a user's
    # command has the system's default
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    vars(forkserver._forkserver).update(server, ensure_running=lambda: None)  # type: ignore[attr-defined]
    contexts._concrete_contexts["spawn"] = _Spawning()  # type: ignore[attr-defined]
    _Worker.log = log
    _surround(environment, log, os.O_TRUNC)
    add_discovery_folder()  # as every new process does
    function(*arguments)


def _run(command: list[str]) -> None:
    sys.argv = command
    (script,) = entry_points(group="console_scripts", name=command[0])
    script.load()()
