"""States of windows on disk: computed once, shared between runs, and verified when they are opened.

A store is a folder with three files: `key.json` says what its states are of, `states.bin` has one
place a window (sparse: a place never written takes no room), `hashes.bin` one sha256 a window. A
window counts once its hash is there and fits, so whatever a killed process left half written is
computed again, and so is what was damaged since. Any number of processes may fill one store: each
takes a stretch of windows that nobody else has. A link in the place of a store or of a file of it
is refused: it could lead to any file of whoever trains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ouroboros.errors import TrainingError
from runtime.files.replacing import replacing

KEY, STATES, HASHES = "key.json", "states.bin", "hashes.bin"
STRETCH = 64
"""Windows that one process takes at a time."""
_FORMAT = 2
_HASH_BYTES = 32
_NAME = re.compile(r"(prelude|teacher)-[0-9a-f]{24}")


@dataclass(frozen=True)
class StoreKey:
    """All that states depend on.

    Attributes:
        kind: `prelude` or `teacher`.
        weights: sha256 of the weights that compute them.
        data: sha256 of the windows.
        windows: how many there are.
        seq_len: tokens a window.
        hidden: numbers a token.
        dtype: how they are kept, `float16` or `float32`.
        precision: what they are computed in, one of the training precisions.
    """

    kind: str
    weights: str
    data: str
    windows: int
    seq_len: int
    hidden: int
    dtype: str
    precision: str

    @property
    def sha256(self) -> str:
        """The hash of all of it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def window_bytes(self) -> int:
        """What a window takes."""
        return self.seq_len * self.hidden * np.dtype(self.dtype).itemsize

    def to_json(self) -> str:
        """Returns what `key.json` holds."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


class StateStore:
    """The states of one key, `[seq, hidden]` a window, open for reading and writing.

    To be closed, by `close` or a `with` statement; until then no other run removes it.
    """

    def __init__(self, root: Path, key: StoreKey) -> None:
        """Opens the store of `key` in the folder `root`; both are made where they are missing.

        Raises:
            TrainingError: what stands there has another key or another size.
            OSError: it can't be written.
        """
        self.key = key
        self.folder = root / f"{key.kind}-{key.sha256[:24]}"
        self._salt = bytes.fromhex(key.sha256)
        sizes = {STATES: key.window_bytes * key.windows, HASHES: _HASH_BYTES * key.windows}
        shape = (key.windows, key.seq_len, key.hidden)
        with contextlib.ExitStack() as files:
            while not self._claim(files):
                files.close()  # another run was just removing it
            self._states, self._hashes = (self._open(files, *one) for one in sizes.items())
            with os.fdopen(os.dup(self._states), "rb") as states:
                self._mapped = np.memmap(states, key.dtype, "r", shape=shape)
            self._files = files.pop_all()

    def __enter__(self) -> StateStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self, files: contextlib.ExitStack) -> bool:
        """Marks the store as in use, so that no other run makes room by removing it."""
        if self.folder.is_symlink():
            raise _is_a_link(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / KEY
        try:
            self._check_key()
            claim = _open_plain(path, os.O_RDONLY)
            files.callback(os.close, claim)
            fcntl.flock(claim, fcntl.LOCK_SH)
            os.utime(claim)
            return os.fstat(claim).st_ino == path.lstat().st_ino
        except FileNotFoundError:
            return False

    def _check_key(self) -> None:
        path, wanted = self.folder / KEY, json.loads(self.key.to_json())
        if not os.path.lexists(path):
            with replacing(path) as staged:
                staged.write_text(self.key.to_json(), encoding="utf-8")
        try:
            with os.fdopen(_open_plain(path, os.O_RDONLY), encoding="utf-8") as file:
                found = json.load(file)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise TrainingError(f"{path} is damaged", f"delete {self.folder}")
        differing = [
            f"{name} is {found.get(name)!r}, wanted {wanted.get(name)!r}"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name)
        ]
        if differing:
            raise TrainingError(
                f"{self.folder} holds states of something else: {'; '.join(differing)}",
                "delete it, or give another --state-cache",
            )

    def _open(self, files: contextlib.ExitStack, name: str, size: int) -> int:
        path = self.folder / name
        descriptor = _open_plain(path, os.O_RDWR | os.O_CREAT)
        files.callback(os.close, descriptor)
        found = os.fstat(descriptor).st_size
        if found < size:  # new, or cut off: what is missing is computed anew
            os.ftruncate(descriptor, size)
        elif found > size:
            raise TrainingError(
                f"{path} has {found:,} bytes and should have {size:,}", f"delete {self.folder}"
            )
        return descriptor

    def close(self) -> None:
        """Lets others remove it."""
        self._files.close()

    def read(self, window: int) -> np.ndarray:
        """Returns the states of a window, `[seq, hidden]`; they are read from disk when used."""
        return np.asarray(self._mapped[window])

    def write(self, window: int, states: np.ndarray) -> None:
        """Keeps the states of a window, `[seq, hidden]`, in the store's type already.

        Raises:
            OSError: the disk is full.
        """
        raw = np.ascontiguousarray(states, dtype=self.key.dtype).tobytes()
        _write_all(self._states, raw, window * self.key.window_bytes)
        _write_all(self._hashes, self._hash(window, raw), window * _HASH_BYTES)

    def hash_of(self, window: int) -> bytes:
        """Returns the sha256 kept for a window; zeros where none is."""
        return os.pread(self._hashes, _HASH_BYTES, window * _HASH_BYTES)

    def holds(self, window: int) -> bool:
        """Says whether the states of a window are there and are what was written."""
        kept = self.hash_of(window)
        return any(kept) and kept == self._hash(window, self.read(window).tobytes())

    def was_written(self, window: int) -> bool:
        """Says whether a hash is there for a window, whether or not its states fit it."""
        return any(self.hash_of(window))

    @contextlib.contextmanager
    def claiming(self, stretch: int) -> Iterator[bool]:
        """Takes a stretch of windows for this process; False where another one has it."""
        place = stretch * STRETCH * _HASH_BYTES
        length = STRETCH * _HASH_BYTES
        try:
            fcntl.lockf(self._hashes, fcntl.LOCK_EX | fcntl.LOCK_NB, length, place)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._hashes, fcntl.LOCK_UN, length, place)

    def _hash(self, window: int, raw: bytes) -> bytes:
        # With its place and key: another window's states are as wrong as damaged ones.
        digest = hashlib.sha256(self._salt + window.to_bytes(8, "little"))
        digest.update(raw)
        return digest.digest()


def make_room(root: Path, needed: int, limit: int, keep: set[str]) -> list[str]:
    """Removes stores that were not used for longest, until `needed` bytes fit under `limit`.

    Args:
        root: the folder of the stores.
        needed: bytes that are to be written, of stores in `keep`.
        limit: bytes that all stores together may take.
        keep: names of stores that stay.

    Returns:
        The names of those removed.

    Raises:
        TrainingError: it does not fit even so.
    """
    sizes = {path: _bytes_on_disk(path) for path in _list_stores(root)}
    removed: list[str] = []
    for path in sorted(sizes, key=_last_use):
        if sum(sizes.values()) + needed <= limit:
            break
        if path.name not in keep and _remove(path):
            removed.append(path.name)
            del sizes[path]
    used = sum(sizes.values())
    if used + needed > limit:
        raise TrainingError(
            f"the states of this run need {needed / 1e9:.2f} GB more in {root}, where "
            f"{used / 1e9:.2f} GB are in use, above state_cache_gb={limit / 1e9:g}",
            f"give --state-cache-gb {(used + needed) / 1e9 + 0.01:.2f}, or train without "
            "--state-cache",
        )
    free = shutil.disk_usage(root).free
    if needed > free:
        raise TrainingError(
            f"the states of this run need {needed / 1e9:.2f} GB more in {root}, and the disk has "
            f"{free / 1e9:.2f} GB left",
            "make room, or give a --state-cache on another disk",
        )
    return removed


def _list_stores(root: Path) -> list[Path]:
    folders = root.iterdir() if root.is_dir() else ()
    named = (one for one in folders if _NAME.fullmatch(one.name) and not one.is_symlink())
    return [one for one in named if (one / KEY).is_file()]


def _last_use(store: Path) -> float:
    try:
        return (store / KEY).lstat().st_mtime
    except OSError:  # another run has just removed it
        return 0.0


def _bytes_on_disk(store: Path) -> int:
    total = 0
    for name in (STATES, HASHES):
        with contextlib.suppress(OSError):
            total += (store / name).lstat().st_blocks * 512
    return total


def _remove(store: Path) -> bool:
    """Removes a store; False where a run has it open."""
    try:
        with os.fdopen(_open_plain(store / KEY, os.O_RDONLY), "rb") as claim:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # First what makes its states count: a removal that is killed leaves none.
            (store / HASHES).unlink(missing_ok=True)
            shutil.rmtree(store)
    except (OSError, TrainingError):
        return False
    return True


def _open_plain(path: Path, flags: int) -> int:
    """Opens a file of a store, which is a file and nothing that leads to one.

    Raises:
        TrainingError: it is a link.
        OSError: it can't be opened.
    """
    try:
        # O_NONBLOCK: a pipe is never waited for; of a file it changes nothing.
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _is_a_link(path) from error
        raise


def _is_a_link(path: Path) -> TrainingError:
    return TrainingError(
        f"{path} is a link, and kept states are read and written through none",
        "delete it, or give another --state-cache",
    )


def _write_all(descriptor: int, raw: bytes, place: int) -> None:
    left: Any = memoryview(raw)
    while left:
        written = os.pwrite(descriptor, left, place)
        left, place = left[written:], place + written
