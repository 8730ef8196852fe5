"""Fixture: directories that keep their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.files import atomic


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every existing directory keeps its place, as a mount point does."""
    monkeypatch.setattr(atomic, "keeps_its_place", Path.is_dir)
