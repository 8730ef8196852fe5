"""Fixture: an original model that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(tiny_original: Path, tmp_path: Path) -> Path:
    """A tied Llama without biases."""
    path = tmp_path / "original"
    shutil.copytree(tiny_original, path)
    return path
