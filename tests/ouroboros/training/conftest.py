"""Fixtures: where a run keeps states, and a teacher of the small checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training import write_teacher


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def teacher(checkpoint: Path, tmp_path: Path) -> str:
    return str(write_teacher(checkpoint, tmp_path / "teacher"))
