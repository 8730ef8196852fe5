"""Fixtures: a small checkpoint, and text to train on and to hold out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ouroboros.checkpoint import save_checkpoint
from tests.support.training import tiny_model, tiny_tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(12):
        words = rng.choice(["the cat ", "sat on ", "a mat ", "and ran "], size=rng.integers(3, 30))
        (folder / f"{number:02}.txt").write_text("".join(words))
    return folder


@pytest.fixture
def heldout(tmp_path: Path) -> Path:
    path = tmp_path / "held.txt"
    path.write_text("the cat ran and sat on a mat " * 10)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "converted"
    save_checkpoint(tiny_model(trained_depths=[2]), tiny_tokenizer(), path, {"LICENSE": b"free"})
    return path
