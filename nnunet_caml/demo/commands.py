"""Runs nnU-Net's commands as a user would, shows what they are doing, and keeps all they say in log files."""

import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import IO

__all__ = ["CommandError", "CommandLine", "PlanningWatch", "PredictionWatch", "TrainingWatch", "clock", "find_command"]

#: Takes a line of output, returns what the user should know of it, if anything.
Watch = Callable[[str], str | None]


class CommandError(RuntimeError):
    """A command failed; the message names its log file and ends with its last lines."""


def find_command(name: str) -> str:
    """Path of a console script: beside this Python, which need not be on the ``PATH``, or else on it.

    Raises:
        CommandError: There is none.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise CommandError(
            f"The command {name} is neither beside {sys.executable} nor on the PATH: is nnU-Net installed there?"
        )
    return found


def clock(seconds: float) -> str:
    """``"3:07"`` for 187 s."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@dataclass
class CommandLine:
    """A terminal with a few variables set.

    Attributes:
        variables: Set for the commands, on top of what this process has.
        logs: Folder for one log file per command.
        silence_s: After this long without news a line says that the command still runs.
        began: When the demo did, for the time at the start of each line.
        stop: Once it is set, whichever thread waits for a command ends it.
    """

    variables: Mapping[str, str]
    logs: Path
    silence_s: float = 15.0
    began: float = field(default_factory=monotonic)
    stop: threading.Event = field(default_factory=threading.Event)

    def say(self, text: str) -> None:
        """Prints a line with the time since the start."""
        print(f"  [{clock(monotonic() - self.began)}] {text}", flush=True)

    def run(self, command: Sequence[str], log_name: str, watch: Watch, variables: Mapping[str, str] | None = None) -> float:
        """Runs a command and waits for it.

        Args:
            command: Name of a console script and its arguments.
            log_name: The log file's name.
            watch: Picks the news out of its output.
            variables: Set for this command only.

        Returns:
            Seconds that it took.

        Raises:
            CommandError: It cannot be started, its exit status is not 0, or it was to stop.
        """
        variables = variables or {}
        typed = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(command)])
        print(f"\n$ {typed}", flush=True)
        log = self.logs / log_name
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [find_command(command[0]), *command[1:]]
        environment = {**os.environ, **self.variables, **variables, "PYTHONUNBUFFERED": "1"}
        start = monotonic()
        # in a thread, because Ctrl-C, which is the main thread's, would end that before it knows what it has started
        starting: Future[subprocess.Popen] = Future()
        starter = threading.Thread(target=_start, args=(starting, arguments, environment))
        last: deque[str] = deque(maxlen=8)
        try:
            starter.start()
            process = starting.result()
            with log.open("w", encoding="utf-8") as file:
                self._follow(process, file, watch, last)
            status = process.wait()
        finally:
            starter.join()
            if (
                not starting.exception() and (process := starting.result()).poll() is None
            ):  # Ctrl-C, a stop, or an error of ours
                for pid in (process.pid, *_started_by(process.pid)):  # nnU-Net's workers would wait for more for ever
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                process.wait()
        if status:
            ending = "\n".join(f"    {line}" for line in last)
            how = f"failed with exit status {status}"
            if status < 0:
                how = f"was killed by signal {signal.Signals(-status).name}"
            raise CommandError(f"{command[0]} {how}; its output is in {log} and ends with\n{ending}")
        return monotonic() - start

    def _follow(self, process: subprocess.Popen, file: IO[str], watch: Watch, last: deque[str]) -> None:
        lines: queue.Queue[str | None] = queue.Queue()
        assert process.stdout is not None
        thread = threading.Thread(target=_put_lines, args=(process.stdout, lines), daemon=True)
        thread.start()
        began = news_at = told = monotonic()
        while True:
            if self.stop.is_set():
                raise CommandError("The command was stopped, as everything here.")
            try:
                line = lines.get(timeout=max(0.05, min(told + self.silence_s - monotonic(), 1.0)))
            except queue.Empty:
                if process.poll() is not None:
                    return  # the output is not at its end: workers of a killed command hold it open
                line = ""
            if line is None:
                return
            file.write(line)
            file.flush()
            if line.strip():
                last.append(line.rstrip())
            now = monotonic()
            if news := watch(line):
                self.say(news)
                news_at = told = now
            elif now - told >= self.silence_s:
                # what it says meanwhile (warnings, progress bars) is in the log file
                self.say("... starting" if news_at == began else f"... still running, for {now - news_at:.0f} s on this")
                told = now


def _started_by(process: int) -> list[int]:
    """Numbers of all processes that a process has started, and those have; none where there is no ``/proc``."""
    children = defaultdict[int, list[int]](list)
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            _, parent, *_ = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            children[int(parent)].append(int(file.parent.name))
    found = [*children[process]]
    for pid in found:  # which grows
        found += children[pid]
    return found


def _start(starting: "Future[subprocess.Popen]", arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Starts a process, whose standard output and error can be read as lines of text."""
    try:
        process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # progress bars begin each of their states with a carriage return, which text mode takes for the end of a line
            encoding="utf-8",
            errors="replace",
        )
    except BaseException as problem:
        starting.set_exception(problem)
    else:
        starting.set_result(process)


def _put_lines(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


class PlanningWatch:
    """News of ``nnUNetv2_plan_and_preprocess``."""

    NEWS = {
        "Fingerprint extraction": "looking at the labelled cases",
        "verify_dataset_integrity Done": "the data set is as nnU-Net wants it",
        "Experiment planning": "planning",
        "Preprocessing dataset": "preprocessing the labelled cases",
    }

    def __call__(self, line: str) -> str | None:
        return next((news for sign, news in self.NEWS.items() if line.startswith(sign)), None)


class TrainingWatch:
    """News of ``nnUNetv2_train``: one line per epoch.

    Args:
        epochs: How many there will be.

    Attributes:
        trained_s: Seconds that the epochs took so far, without what comes before, between and after them.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.trained_s = 0.0
        self.epoch = 0
        self.loss = "?"

    def __call__(self, line: str) -> str | None:
        text = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?: ", "", line.strip())
        if match := re.fullmatch(r"Epoch (\d+)", text):
            self.epoch = int(match[1]) + 1
            return f"training, {self.epochs} epochs" if self.epoch == 1 else None
        if match := re.fullmatch(r"train_loss (\S+)", text):
            self.loss = match[1]
        if match := re.fullmatch(r"Epoch time: (\S+) s", text):
            self.trained_s += float(match[1])
            return f"epoch {self.epoch} of {self.epochs}: loss {self.loss}, {match[1]} s"
        if re.match(r"\d+ labelled and \d+ unlabelled training cases", text):
            return text
        return None


class PredictionWatch:
    """News of ``nnUNetv2_predict``: one line per case.

    Args:
        cases: How many there are.
    """

    def __init__(self, cases: int) -> None:
        self.cases = cases
        self.case = 0

    def __call__(self, line: str) -> str | None:
        if match := re.match(r"Predicting (\S+?):?$", line.strip()):
            self.case += 1
            return f"case {self.case} of {self.cases}: {match[1]}"
        return None
