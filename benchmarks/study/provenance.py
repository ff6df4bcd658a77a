"""What a training was made with, so that whoever makes a figure again and gets another one can see what differs."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from study.commands import REPOSITORY

__all__ = ["MADE_WITH", "made_with", "summary"]

#: key in the cost of a run
MADE_WITH = "made_with"
PACKAGES = ("torch", "nnunetv2", "dynamic-network-architectures", "batchgeneratorsv2", "acvl-utils", "numpy", "nnunet-caml")


def made_with(device: torch.device) -> dict[str, str]:
    """Versions of what decides on a figure, the state of this repository, and the device, for its times."""
    cpu = f"CPU, threads: {torch.get_num_threads()} of {os.cpu_count()}"
    return {
        **{name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
    }


def summary(costs: Iterable[dict[str, Any]]) -> str:
    """A Markdown list: each combination with its number of trainings, and how many say nothing of it."""
    known, unknown = Counter[str](), 0
    for cost in costs:
        if MADE_WITH in cost:
            known[", ".join(f"{name} {value}" for name, value in cost[MADE_WITH].items() if value)] += 1
        else:
            unknown += 1
    lines = [f"- {number} with {combination}" for combination, number in known.most_common()]
    if unknown:
        lines.append(f"- {unknown} before this was written down")
    return "\n".join(["Trainings that were made here or are kept:", "", *lines]) if lines else ""


def _version(package: str) -> str:
    """Empty where a package is used without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """Of the repository, with ``-dirty`` where files differ from it; empty without git."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
