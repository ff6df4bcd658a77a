"""What a training says it was made with."""

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from study import provenance
from study.provenance import made_with, summary


def git(folder: Path, *arguments: str) -> str:
    names = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    return subprocess.run(["git", "-C", str(folder), *names, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_versions_commit_and_device(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    assert made_with(torch.device("cpu"))["commit"] == "", "no repository"
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = made_with(torch.device("cpu"))
    assert clean["commit"] == git(tmp_path, "rev-parse", "--short", "HEAD").strip()
    (tmp_path / "file").write_text("2")
    assert made_with(torch.device("cpu"))["commit"] == f"{clean['commit']}-dirty"
    assert clean["nnunetv2"] == version("nnunetv2")
    assert clean["device"].startswith(f"CPU, threads: {torch.get_num_threads()} of ")


def test_trainings_by_what_they_were_made_with():
    old, new = ({"made_with": {"torch": v, "commit": c}} for v, c in (("2.3.0", ""), ("2.14.1", "abc")))
    text = summary([old, new, {"step_s": 1.0}, new])
    assert text.splitlines()[2:] == [
        "- 2 with torch 2.14.1, commit abc",
        "- 1 with torch 2.3.0",
        "- 1 before this was written down",
    ]
    assert summary([]) == ""
