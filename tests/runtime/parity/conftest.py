"""Fixtures: a real bundle, and a copy of it to tamper with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(params=["plain", pytest.param("massive", marks=pytest.mark.slow)])
def bundle(request: pytest.FixtureRequest) -> Path:
    """A tiny bundle; the second has massive activations and attention scores of a thousand."""
    name = "tiny_bundle" if request.param == "plain" else "massive_bundle"
    found: Path = request.getfixturevalue(name)
    return found


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    shutil.copytree(bundle, path)
    return path
