"""Shared fixtures: where the real data is, and a tiny synthetic data set planned and preprocessed by nnU-Net itself."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("NNUNET_CAML_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the reference figures and the real data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED} with reference figures and real data (set NNUNET_CAML_SHARED)")
    return SHARED
