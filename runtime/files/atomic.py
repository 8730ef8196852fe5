"""Directories that are either whole and new, or whole and old.

A directory is staged on the file system of its destination, flushed to disk, and exchanged in one
rename. One that can't be renamed, as a mount point can't, has its contents exchanged: entry by
entry, with a list of what is to come, from which a run that was killed in between is undone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runtime.files.destinations import (
    OLD,
    RECOVERED,
    STAGED,
    Obstacle,
    find_obstacle,
    is_ours,
    keeps_its_place,
)

_COMING = "coming.json"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_KEEPS_ITS_PLACE = (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES)


@contextmanager
def publish(
    out: Path,
    keep: Collection[str] = (),
    staged_in: Path | None = None,
    replaces: Collection[str] = (),
    known: Collection[str] = (),
) -> Iterator[Path]:
    """Yields a staging directory that becomes `out` when the block ends without an error.

    A symbolic link is followed: what it points to is replaced, the link stays. Files get the modes
    that the umask gives. What a killed run left of the same `out` is removed or put back first.

    Args:
        out: the destination; its parent is made.
        keep: names of entries of an existing `out` to carry over, as hard links, where the new
            content does not name them (a training run's state and logs); all others go.
        staged_in: an existing directory to stage in, on the file system of `out`; None for the
            parent of `out`.
        replaces: kinds of `destinations` that may stand there; by default nothing may.
        known: files, by their paths below `out`, that may stand in a directory of no kind.

    Raises:
        FileExistsError: something else stands at `out`, before the block runs or after it.
        OSError: the disk is full or `out` can't be written; `out` is then as it was.
    """
    if obstacle := check_place(out, replaces, known=known):
        raise FileExistsError(f"{out} {obstacle}")
    given, out = out, Path(os.path.realpath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    in_place = keeps_its_place(out)
    place = out if in_place else out.parent if staged_in is None else staged_in
    _remove_stale(out, place)
    staging = place / f"{_prefix(out)}{secrets.token_hex(6)}"
    staging.mkdir()
    lock = _lock(staging)
    try:
        yield staging
        _set_modes(staging)
        for name in keep:
            if not in_place and (out / name).exists() and not (staging / name).exists():
                _carry_over(out / name, staging / name)
        for path in sorted(staging.rglob("*")):
            sync(path)
        sync(staging)
        # It may have changed in the meantime.
        if obstacle := find_obstacle(given, replaces, known=known):
            raise FileExistsError(f"{given} {obstacle}")
        if in_place:
            _exchange_contents(staging, out, keep)
        else:
            _replace_or_refill(staging, out, keep)
            sync(out.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def check_place(
    out: Path,
    replaces: Collection[str] = (),
    apart: Sequence[Path] = (),
    known: Collection[str] = (),
) -> Obstacle | None:
    """Says, before any work, why `publish` would refuse `out`; see `destinations.find_obstacle`.

    What a killed run left half exchanged in a directory that keeps its place is put back first.
    """
    real = Path(os.path.realpath(out))
    if keeps_its_place(real) and os.access(real, os.W_OK | os.X_OK):
        _undo_exchange(real)
    return find_obstacle(out, replaces, apart, known)


def _prefix(out: Path) -> str:
    return f".{out.name}{STAGED}"


def _replace_or_refill(staging: Path, out: Path, keep: Collection[str]) -> None:
    """Replaces `out`; where only its entries can be renamed, as it turns out now, those."""
    try:
        _replace(staging, out)
    except OSError as error:
        if error.errno not in _KEEPS_ITS_PLACE or not out.is_dir():
            raise
        inner = out / f"{_prefix(out)}{secrets.token_hex(6)}"
        try:
            shutil.copytree(staging, inner, symlinks=True)
            _exchange_contents(inner, out, keep)
        finally:
            shutil.rmtree(inner, ignore_errors=True)


def _exchange_contents(staging: Path, out: Path, keep: Collection[str]) -> None:
    """Moves the entries of `out` away and those of `staging`, which lies in it, in their place.

    Those of `keep` stay, unless the new content names them. A failure puts everything back.
    """
    coming = sorted(path.name for path in staging.iterdir())
    old = out / f".{out.name}{OLD}{secrets.token_hex(6)}"
    old.mkdir()
    plan = {"coming": coming, "staging": staging.name}
    (old / _COMING).write_text(json.dumps(plan), encoding="utf-8")
    sync(old / _COMING)
    sync(old)
    sync(out)
    (old / "entries").mkdir()
    try:
        for entry in sorted(out.iterdir()):
            stays = entry.name in keep and entry.name not in coming
            if entry not in (staging, old) and entry.name != RECOVERED and not stays:
                entry.rename(old / "entries" / entry.name)
        for name in coming:
            (staging / name).rename(out / name)
        sync(out)
    except BaseException:
        _put_back(out, old)
        raise
    # From here on the new content counts: without its list the old one is only litter.
    (old / _COMING).unlink()
    sync(old)
    shutil.rmtree(old, ignore_errors=True)


def _undo_exchange(out: Path) -> None:
    """Puts back what a killed run has moved away."""
    for old in out.glob(f".{glob.escape(out.name)}{OLD}*"):
        if not (old / _COMING).is_file():
            shutil.rmtree(old, ignore_errors=True)
            continue
        _, staging = _read_plan(out, old)
        lock = _lock(staging) if staging.is_dir() else None
        if lock is None and staging.is_dir():
            continue  # of a run that is at work
        _put_back(out, old)
        if lock is not None:
            os.close(lock)


def _read_plan(out: Path, old: Path) -> tuple[list[str], Path]:
    """Returns the names that come, and the staging directory they come from."""
    try:
        plan = json.loads((old / _COMING).read_text(encoding="utf-8"))
        names = [*plan["coming"], plan["staging"]]
        if all(isinstance(name, str) and Path(name).name == name for name in names):
            return names[:-1], out / names[-1]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return [], old / "none"  # killed while it was written: nothing had moved


def _put_back(out: Path, old: Path) -> None:
    """Undoes an exchange that came to any point, from its list."""
    coming, staging = _read_plan(out, old)
    for name in coming:
        # What has left the staging directory is new; anything else of the name has not moved yet.
        if os.path.lexists(out / name) and not os.path.lexists(staging / name):
            (out / name).rename(old / f"new-{secrets.token_hex(6)}")
    entries = old / "entries"
    for entry in sorted(entries.iterdir()) if entries.is_dir() else ():
        entry.rename(out / entry.name)
    shutil.rmtree(old, ignore_errors=True)


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
    """Removes what killed runs left of `out` in `place`, and puts back what one had moved away."""
    for entry in sorted(place.iterdir()):
        staged, old = (entry.name.startswith(f".{out.name}{sign}") for sign in (STAGED, OLD))
        if not (staged or old) or not is_ours(entry.name) or not entry.is_dir():
            continue
        lock = _lock(entry)
        if lock is None:
            continue  # of a run that is at work
        if old and not out.exists():
            entry.rename(out)
        else:
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
        aside = staging.with_name(f".{out.name}{OLD}{secrets.token_hex(6)}")
        lock = _lock(out)
        try:
            out.rename(aside)
            try:
                staging.rename(out)
            except OSError:
                aside.rename(out)
                raise
            aside.rename(staging)
        finally:
            if lock is not None:
                os.close(lock)


def _exchange(first: Path, second: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
