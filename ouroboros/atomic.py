"""Directories that are either whole and new, or whole and old.

A directory is staged on the file system of its destination, flushed to disk, and exchanged in one
rename.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def publish(out: Path, keep: Collection[str] = (), staged_in: Path | None = None) -> Iterator[Path]:
    """Yields a staging directory that becomes `out` when the block ends without an error.

    A symbolic link is followed: what it points to is replaced, the link stays. Files get the modes
    that the umask gives. What a killed run left staged for the same `out` is removed first.

    Args:
        out: the destination; its parent is made.
        keep: names of entries of an existing `out` to carry over, as hard links, where the new
            content does not name them (a training run's state and logs); all others go.
        staged_in: an existing directory to stage in, on the file system of `out`; None for the
            parent of `out`.

    Raises:
        OSError: the disk is full or `out` can't be written; `out` is then as it was.
    """
    out = Path(os.path.realpath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    place = out.parent if staged_in is None else staged_in
    _remove_stale(out, place)
    staging = place / f"{_prefix(out)}{secrets.token_hex(6)}"
    staging.mkdir()
    lock = _lock(staging)
    try:
        yield staging
        _set_modes(staging)
        for name in keep:
            if (out / name).exists() and not (staging / name).exists():
                _carry_over(out / name, staging / name)
        for path in sorted(staging.rglob("*")):
            sync(path)
        sync(staging)
        _replace(staging, out)
        sync(out.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _prefix(out: Path) -> str:
    return f".{out.name}.staging-"


def find_obstacle(out: Path) -> str | None:
    """Returns why the directory `out` can't be written, found before any work; None if it can."""
    place = out if out.exists() else next(one for one in out.absolute().parents if one.exists())
    if not place.is_dir():
        return f"{place} is a file"
    above = place.parent if place == out else place
    return None if os.access(above, os.W_OK | os.X_OK) else f"{above} is not writable"


def _lock(folder: Path) -> int | None:
    """Returns a descriptor that holds the lock of `folder`, or None where it can't be had.

    The system drops the lock when its process ends, however it ends; so a folder that can be
    locked belongs to nobody any more. Without locks (some network file systems) nothing can.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_stale(out: Path, place: Path) -> None:
    for entry in place.iterdir():
        if not entry.name.startswith(_prefix(out)) or not entry.is_dir():
            continue
        lock = _lock(entry)
        if lock is not None:
            shutil.rmtree(entry, ignore_errors=True)
            os.close(lock)


def _set_modes(staging: Path) -> None:
    # safetensors writes through a private temporary file, mode 0600 whatever the umask.
    mode = staging.stat().st_mode & 0o666
    for path in staging.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _carry_over(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, copy_function=_link, symlinks=True)
    else:
        _link(source, target)


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
        aside = staging.with_name(f".{out.name}.old-{secrets.token_hex(6)}")
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
