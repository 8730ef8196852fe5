"""Directories that are either whole and new, or whole and old.

A directory is staged beside its destination, flushed to disk, and exchanged in one rename.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def publish(out: Path, keep: bool = False) -> Iterator[Path]:
    """Yields a staging directory that becomes `out` when the block ends without an error.

    Args:
        out: the destination; its parent is made.
        keep: carry over what an existing `out` holds and the new content does not name (a
            training run's state and logs), as hard links.

    Raises:
        OSError: the disk is full or `out` can't be written; `out` is then as it was.
    """
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.staging-", dir=out.parent))
    try:
        staging.chmod(0o755)
        yield staging
        if keep and out.is_dir():
            _carry_over(out, staging)
        for path in sorted(staging.rglob("*")):
            sync(path)
        sync(staging)
        _replace(staging, out)
        sync(out.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _carry_over(out: Path, staging: Path) -> None:
    for entry in out.iterdir():
        target = staging / entry.name
        if target.exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target, copy_function=_link, symlinks=True)
        else:
            _link(entry, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def sync(path: Path) -> None:
    """Flushes a file or directory to disk."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(staging: Path, out: Path) -> None:
    """Puts `staging` in the place of `out`; afterwards `staging` holds the old content, if any."""
    if not out.exists():
        staging.rename(out)
    elif not _exchange(staging, out):
        # No atomic exchange on this system: two renames, the old content back if one fails.
        aside = staging.with_name(staging.name + ".old")
        out.rename(aside)
        try:
            staging.rename(out)
        except OSError:
            aside.rename(out)
            raise
        aside.rename(staging)


def _exchange(first: Path, second: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
