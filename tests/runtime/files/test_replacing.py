"""One file in the place of another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.files.replacing import replacing


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    for text in ("one", "two"):
        with replacing(target) as staged:
            assert staged.name == target.name
            staged.write_text(text)
        assert target.read_text() == text
    assert list(tmp_path.iterdir()) == [target]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    target.write_text("old")

    def write() -> None:
        with replacing(target) as staged:
            staged.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_nobody_can_foresee_where_it_is_written(tmp_path: Path) -> None:
    """A link that was put there would be written through."""
    places = set()
    for _ in range(2):
        with replacing(tmp_path / "file") as staged:
            staged.touch()
            places.add(staged)
            assert staged.parent.stat().st_mode & 0o077 == 0
    assert len(places) == 2
