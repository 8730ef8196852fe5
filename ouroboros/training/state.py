"""The trainer's private state: hashed folders that appear whole or not at all.

`OUT/state/step-N` holds what is needed to go on after train step N exactly as if nothing had
happened. A folder is written under a hidden name, every file is hashed and flushed to the disk, and
only then is it renamed; the newest two are kept. Transformers' Trainer by itself writes in place
and resumes silently to other weights when a file is missing.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ouroboros.errors import TrainingError
from runtime.files.destinations import STEP
from runtime.files.hashing import hash_file

HASHES = "hashes.json"
OPTIONS = "options.json"
WEIGHTS = "trainable.safetensors"
PROGRESS = "trainer_state.json"
_NEEDED = (WEIGHTS, PROGRESS, "optimizer.*", "scheduler.pt", "rng_state*.pth")
# On how many threads a sum is split decides the order of its terms, and so its last bits.
THREADS = "cpu_threads"
MACHINE = "machine"
# Kept states that were computed again, on another machine say, may differ in their last bits too.
STATES = "states_sha256"
KEPT = 2
_STAGING = ".staging"


def list_steps(state_dir: Path) -> list[Path]:
    """Returns the published step folders, the newest first."""
    if not state_dir.is_dir():
        return []
    folders = [p for p in state_dir.iterdir() if p.is_dir() and STEP.fullmatch(p.name)]
    return sorted(folders, key=train_step_of, reverse=True)


def train_step_of(folder: Path) -> int:
    """Returns N of a folder called step-N."""
    matched = STEP.fullmatch(folder.name)
    if matched is None:
        raise TrainingError(f"{folder}: not a state folder", "they are called step-N")
    return int(matched[1])


def find_problem(folder: Path) -> str | None:
    """Says what is wrong with a step folder; None where every file is there and has its hash."""
    expected = _read_table(folder / HASHES)
    if expected is None:
        return f"{HASHES} is missing or not a table of hashes"
    present = {p.name for p in folder.iterdir()} - {HASHES}
    for name in sorted(present.symmetric_difference(expected)):
        return f"{name} is {'missing' if name in expected else 'not one of its files'}"
    for name, digest in expected.items():
        if not (folder / name).is_file():  # a pipe would be waited for
            return f"{name} is no file"
        if hash_file(folder / name) != digest:
            return f"{name} has changed"
    return None


def _read_table(file: Path) -> dict[str, Any] | None:
    """Returns the JSON object that a file holds; None where it holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def find_newest_valid(state_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """Returns the newest step folder whose hashes match; None where there are no folders.

    Args:
        state_dir: `OUT/state`.
        warn: gets one line for every newer folder that had to be passed over.

    Raises:
        TrainingError: There are folders and none of them is whole.
    """
    folders = list_steps(state_dir)
    problems: list[str] = []
    for folder in folders:
        problem = find_problem(folder)
        if problem is None:
            return folder
        problems.append(f"{folder.name}: {problem}")
        warn(f"warning: {folder} can't be used ({problem}); trying an older state")
    if folders:
        raise TrainingError(
            f"{state_dir} holds no whole state ({'; '.join(problems)})",
            f"delete {state_dir} to start from the beginning",
        )
    return None


def check_state(folder: Path) -> None:
    """Refuses a state that lacks what is gone on from: transformers would pass over it in silence.

    Raises:
        TrainingError: a file is missing, or it says that it is of another train step.
    """
    names = [path.name for path in folder.iterdir()]
    for pattern in _NEEDED:
        if not fnmatch.filter(names, pattern):
            raise TrainingError(f"{folder} lacks {pattern}", older_state(folder))
    said = (_read_table(folder / PROGRESS) or {}).get("global_step")
    if said != train_step_of(folder):
        raise TrainingError(
            f"{folder / PROGRESS} is damaged: it is of train step {said!r:.80}", older_state(folder)
        )


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@contextlib.contextmanager
def reading(folder: str | None) -> Iterator[None]:
    """Names the state where reading it fails; None where there is none to read.

    Raises:
        TrainingError: it can't be read.
    """
    try:
        yield
    except (TrainingError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if folder is None:
            raise
        # Without PyTorch's own words, which advise to read a pickle of a stranger's as one.
        raise TrainingError(
            f"{folder} can't be read ({type(error).__name__})", older_state(Path(folder))
        ) from error


def older_state(folder: Path) -> str:
    """Says what to do where a state can't be gone on from."""
    return f"delete {folder} to go on from an older state, or from the beginning"


@contextlib.contextmanager
def stage_step(state_dir: Path, train_step: int) -> Iterator[Path]:
    """Yields a hidden folder to write into; on success publishes it as `step-{train_step}`.

    Every process of a distributed run may enter; only the one that `publish_step`s publishes.
    A failure leaves the published folders as they were.
    """
    staged = state_dir / _STAGING / f"step-{train_step}"
    staged.mkdir(parents=True, exist_ok=True)
    try:
        yield staged
    except BaseException:
        shutil.rmtree(state_dir / _STAGING, ignore_errors=True)
        raise


def publish_step(staged: Path, state_dir: Path) -> Path:
    """Hashes and flushes a staged folder, renames it into place and drops the oldest ones."""
    files = sorted(p for p in staged.iterdir() if p.name != HASHES)
    hashes = {file.name: hash_file(file) for file in files}
    (staged / HASHES).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
    for file in (*files, staged / HASHES, staged):
        _flush(file)
    target = state_dir / staged.name
    if target.exists():  # a damaged one: a whole one of this step would have been resumed from
        shutil.rmtree(target)
    staged.rename(target)
    _flush(state_dir)
    clear_staging(state_dir)
    for old in list_steps(state_dir)[KEPT:]:
        # Hidden first, so that a kill in the middle leaves no half of a published folder.
        doomed = state_dir / _STAGING
        shutil.rmtree(doomed, ignore_errors=True)
        old.rename(doomed)
        shutil.rmtree(doomed)
    return target


def clear_staging(state_dir: Path) -> None:
    """Removes what a killed run left half written."""
    shutil.rmtree(state_dir / _STAGING, ignore_errors=True)


def write_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Writes the options a state belongs to, for `check_options`."""
    text = json.dumps(dict(options), indent=1, sort_keys=True)
    (folder / OPTIONS).write_text(text, encoding="utf-8")


def check_options(
    folder: Path,
    options: Mapping[str, Any],
    warn: Callable[[str], None],
    usual: Mapping[str, Any] | None = None,
) -> None:
    """Refuses to go on with options other than those the state was written with.

    Another number of CPU threads is no reason to refuse, as another machine may have other cores,
    nor are another device or torch, nor states of prelude and teacher that were computed again; but
    the run is then not certain to end in the same bits, which `warn` gets told.

    Args:
        folder: the state.
        options: what the run would go on with.
        warn: gets a line for each of those that is another.
        usual: the defaults of what has some: an option that came since counts as its own.

    Raises:
        TrainingError: Some option differs; the message names each with both values. Or there is no
            telling, since the state holds none.
    """
    saved = _read_table(folder / OPTIONS)
    if saved is None:
        raise TrainingError(
            f"{folder / OPTIONS} is missing or not a table of options", older_state(folder)
        )
    given = json.loads(json.dumps(dict(options)))
    before, now = saved.pop(THREADS, None), given.pop(THREADS, None)
    made_on, made_now = saved.pop(MACHINE, None), given.pop(MACHINE, None)
    read_before, read_now = saved.pop(STATES, None), given.pop(STATES, None)
    saved, given = ({**json.loads(json.dumps(usual or {})), **one} for one in (saved, given))
    differing = [
        f"{name} was {saved.get(name)!r}, now {given.get(name)!r}"
        for name in sorted(saved.keys() | given.keys())
        if saved.get(name) != given.get(name)
    ]
    if differing:
        raise TrainingError(
            f"{folder.parent.parent} can't be resumed with other options: {'; '.join(differing)}",
            "give the old ones, or start over in another folder",
        )
    if before != now:
        warn(
            f"warning: the run began on {before} CPU threads and goes on with {now}: the last bits "
            f"of its weights may differ (OMP_NUM_THREADS={before} makes them the same)"
        )
    if made_on and made_on != made_now:  # states of before don't say it
        warn(
            f"warning: the run began on {made_on} and goes on on {made_now}: the last bits of "
            "its weights may differ"
        )
    if read_before != read_now:
        warn(
            "warning: the kept states are not those that the run began with, but were computed "
            "anew: the last bits of its weights may differ"
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
