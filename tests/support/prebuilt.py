"""The same bundles, made beforehand by `tests/versions_check.py`: nothing of torch is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["block_bundle", "halting_bundle", "massive_bundle", "tiny_bundle"]

FOLDER = "OURO_TEST_BUNDLES"


def _find(name: str) -> Path:
    folder = os.environ.get(FOLDER)
    if folder is None:
        names = "tiny, block, halting and massive"
        pytest.fail(f"set {FOLDER} to a folder with the bundles {names}, or install torch")
    return Path(folder) / name


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """The bundle of the tiny checkpoint, depths 1..5; do not change it, copy it."""
    return _find("tiny")


@pytest.fixture(scope="session")
def massive_bundle() -> Path:
    """The bundle of a model with massive activations, depths 1..5; do not change it, copy it."""
    return _find("massive")


@pytest.fixture(scope="session")
def block_bundle() -> Path:
    """The bundle of a model that loops a block of two layers, depths 1..5; do not change it."""
    return _find("block")


@pytest.fixture(scope="session")
def halting_bundle() -> Path:
    """The bundle of the tiny checkpoint with a trained halter, depths 1..5; do not change it."""
    return _find("halting")
