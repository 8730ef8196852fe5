"""Fixtures: a small checkpoint, and text to train on and to hold out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training import write_checkpoint, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def heldout(tmp_path: Path) -> Path:
    path = tmp_path / "held.txt"
    path.write_text("the cat ran and sat on a mat " * 10)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "converted")
