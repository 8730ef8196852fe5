"""What stands at a path, and whether a directory may be written there.

Everything that is written is written whole, in the place of what was there. So there is one rule
for all of it: what may be replaced is a directory of the kind that is written, with nothing else
in it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

BUNDLE, CHECKPOINT, RUN, TRITON = "bundle", "checkpoint", "run", "triton"
DAMAGED = "damaged"  # a bundle whose manifest is none: it is read as one, to say what is wrong
BUNDLES = (BUNDLE, DAMAGED)
DELTA, DELTA_NAME = "delta", "delta.json"
ADAPTERS = "adapters.safetensors"  # factors of what was added to a checkpoint's weights
MISSING, EMPTY, FILE, MODEL, FOREIGN = "missing", "empty", "file", "model", "foreign"
NAMES = {
    BUNDLE: "a bundle",
    DAMAGED: "a damaged bundle or not of Ouroboros",
    CHECKPOINT: "a checkpoint of Ouroboros",
    RUN: "a training run",
    DELTA: "a delta of a checkpoint",
    TRITON: "a model of Ouroboros for Triton",
    MODEL: "a model of another kind",
    FOREIGN: "not of Ouroboros",
}

STAGED, OLD = ".staging-", ".old-"  # in the names of what is being written
DELTA_FORMAT = "ouroboros-delta"  # what a delta.json says it is
TRITON_SIGN = "ouroboros.checkpoint_sha256"  # a parameter of every config.pbtxt written here
_SIGNED = re.compile(
    rb"^[^#\n]*\bkey\s*:\s*[\"']" + re.escape(TRITON_SIGN).encode() + rb"[\"']", re.M
)
STEP = re.compile(r"step-(\d+)")  # a folder of a run's state
_OURS = re.compile(rf"\..+({re.escape(STAGED)}|{re.escape(OLD)})[0-9a-f]{{12}}")
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", "__pycache__")
RECOVERED = "lost+found"  # the file system's own, at the root of a disk
# What save_pretrained of models and tokenizers writes, and what is put beside it.
_CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    ADAPTERS,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
    "modeling_ouroboros.py",
    "LICENSE",
    "ATTRIBUTION",
    "training.png",
    "gate.png",
)
_ANOTHER = "give another directory"
_KEPT = ("state", "logs")
_RUN_FILES = (*_CHECKPOINT_FILES, *_KEPT)
_TRITON_FILES = ("config.pbtxt", "LICENSE", "ATTRIBUTION")
_DIRECTORIES = (*_KEPT, "additional_chat_templates")
_CHECKED = (BUNDLE, CHECKPOINT, RUN, TRITON, DELTA)
_READ_AT_MOST = 16 << 20


class Obstacle(NamedTuple):
    """Why a directory may not be written somewhere, as the fields of an error.

    Attributes:
        problem: a clause to put behind the name of the destination, with what was found.
        cure: what to do next.
    """

    problem: str
    cure: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.cure}"


def kind_of(path: Path) -> str:
    """Says what stands at a path, links followed.

    Returns:
        MISSING, FILE, EMPTY, or of a directory BUNDLE, DAMAGED (a bundle whose manifest can't be
        read or lacks what every one has), CHECKPOINT, RUN (a checkpoint being trained, or the state
        of one), DELTA, TRITON, MODEL (Hugging Face's, of another type) or FOREIGN.

    Raises:
        OSError: a directory can't be read.
    """
    if not path.exists():
        return MISSING
    if not path.is_dir():
        return FILE
    names = set(_list(path))
    if not names:
        return EMPTY
    if kind := _kind_of_bundle(path, names):
        return kind
    if _read_object(path / DELTA_NAME).get("format") == DELTA_FORMAT:
        return DELTA
    if "config.pbtxt" in names and _SIGNED.search(_read(path / "config.pbtxt")):
        return TRITON
    state = path / "state"
    steps = os.listdir(state) if state.is_dir() else []
    if any(STEP.fullmatch(name) for name in steps) or names <= set(_KEPT):
        return RUN
    config = _read_object(path / "config.json")
    if config.get("model_type") == "ouroboros":
        return RUN if names & set(_KEPT) else CHECKPOINT
    return MODEL if "model_type" in config else FOREIGN


def _kind_of_bundle(path: Path, names: Collection[str]) -> str | None:
    """BUNDLE or DAMAGED; None where the directory was not meant as a bundle."""
    try:
        manifest = _read_object(path / "manifest.json")
    except OSError:
        manifest = {}
    if {"format_version", "files", "graphs"} <= manifest.keys():
        return BUNDLE
    # Only bundles have the one; a manifest.json that can be read is one of something else.
    cut = not manifest and "manifest.json" in names and "config.json" not in names
    return DAMAGED if "manifest.sha256" in names or cut else None


def list_files(path: Path) -> list[Path]:
    """Returns the files of a directory by name, less what desktops and Python leave behind.

    Raises:
        OSError: it can't be read.
    """
    return [path / name for name in sorted(_list(path)) if (path / name).is_file()]


def find_strangers(path: Path, kind: str) -> list[str]:
    """Lists what a directory of a kind holds that no such directory is written with.

    Args:
        path: the directory.
        kind: BUNDLE, CHECKPOINT, RUN, DELTA or TRITON.

    Raises:
        OSError: a directory can't be read.
    """
    if kind == BUNDLE:
        files = _read_object(path / "manifest.json").get("files")
        listed = set(files) if isinstance(files, dict) else set()
        known = {"manifest.json", "manifest.sha256", *listed}
        return [name for name in _walk(path) if name not in known]
    if kind == DELTA:
        own = _read_object(path / DELTA_NAME).get("own")
        known = {DELTA_NAME, *(own if isinstance(own, dict) else ())}
        return [name for name in _walk(path) if name not in known]
    patterns = {CHECKPOINT: _CHECKPOINT_FILES, RUN: _RUN_FILES, TRITON: _TRITON_FILES}[kind]
    return [name for name in _list(path) if not _belongs(path / name, kind, patterns)]


def _belongs(entry: Path, kind: str, patterns: Sequence[str]) -> bool:
    if entry.is_dir():
        if kind == TRITON:  # the versions of a model
            return entry.name.isdigit()
        return entry.name in _DIRECTORIES and entry.name in patterns
    return any(fnmatchcase(entry.name, one) for one in patterns)


def find_obstacle(
    out: Path,
    replaces: Collection[str] = (),
    apart: Sequence[Path] = (),
    known: Collection[str] = (),
) -> Obstacle | None:
    """Says why a directory may not be written at `out`; None where it may. Nothing is changed.

    Args:
        out: the destination; links are followed.
        replaces: the kinds that may stand there, beside nothing at all and an empty directory.
        apart: what is read meanwhile, files or directories: it may not be in the way.
        known: files, by their paths below `out`, that may stand in a directory of no kind.

    Returns:
        What was found, to put behind the name of `out`, and what to do.
    """
    try:
        return _find_obstacle(out, replaces, apart, known)
    except OSError as error:
        return Obstacle(f"can't be read: {error.strerror or error}", _ANOTHER)


def _find_obstacle(
    out: Path, replaces: Collection[str], apart: Sequence[Path], known: Collection[str]
) -> Obstacle | None:
    real = Path(os.path.realpath(out))
    kind = kind_of(real)
    if kind == FILE:
        return Obstacle("is a file", "give a directory")
    for place, name in _lived_in():
        if place == real or place.is_relative_to(real):
            whole = "is" if place == real else "holds"
            return Obstacle(f"{whole} {name}, which is not replaced", "give a directory of its own")
    for source in apart:
        other = Path(os.path.realpath(source))
        if other == real:
            return Obstacle("is what it is made from", _ANOTHER)
        if other.is_relative_to(real):
            return Obstacle(f"holds {source}, which it is made from", _ANOTHER)
    if kind == FOREIGN and known:
        if strangers := [name for name in _walk(real) if name not in known]:
            return _name_strangers(f"holds {strangers[0]}", strangers)
    elif kind not in (MISSING, EMPTY, *replaces):
        return Obstacle(f"is {NAMES[kind]}, so it is left alone", "give a new directory")
    if kind in _CHECKED and (strangers := find_strangers(real, kind)):
        return _name_strangers(f"is {NAMES[kind]} but also holds {strangers[0]}", strangers)
    for mount in _find_mounts(real):
        # What a run keeps stays where it is; anything else on another disk would be emptied.
        if not (RUN in replaces and mount.relative_to(real).parts[0] in _KEPT):
            return Obstacle(
                f"holds the mount point {mount.relative_to(real)}, which is not replaced",
                f"unmount it, or {_ANOTHER}",
            )
    return _find_lock(real)


def _name_strangers(opening: str, strangers: Sequence[str]) -> Obstacle:
    more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
    return Obstacle(
        f"{opening}{more}, which would be lost", "move that away, or give a new directory"
    )


def _lived_in() -> Iterator[tuple[Path, str]]:
    """Directories that a shell or a user stands in."""
    with suppress(FileNotFoundError):  # it was removed
        yield Path(os.path.realpath(Path.cwd())), "the current directory"
    with suppress(RuntimeError):  # there is none
        yield Path(os.path.realpath(Path.home())), "the home directory"


def _find_lock(real: Path) -> Obstacle | None:
    """Says why the system would not let `real` be written."""
    place = real if real.exists() else next(one for one in real.parents if one.exists())
    if not place.is_dir():
        return Obstacle(f"can't be written: {place} is a file", _ANOTHER)
    above = place.parent if place == real and not keeps_its_place(real) else place
    if os.access(above, os.W_OK | os.X_OK):
        return None
    return Obstacle(f"can't be written: {above} is not writable", _ANOTHER)


def keeps_its_place(directory: Path) -> bool:
    """Says whether a directory must stay where it is, and only its entries may be renamed.

    A mount point and a directory in a closed one can't be renamed; one with a mount point below it
    can, and would take it along.
    """
    if not directory.is_dir():
        return False
    closed = not os.access(directory.parent, os.W_OK | os.X_OK)
    return closed or _is_mount(directory) or bool(_find_mounts(directory))


def _is_mount(directory: Path) -> bool:
    return os.path.ismount(directory) or str(directory) in _mount_points()


def _find_mounts(directory: Path) -> list[Path]:
    """Mount points below a directory, itself not."""
    found = (Path(name) for name in sorted(_mount_points()))
    return [one for one in found if one != directory and one.is_relative_to(directory)]


def _mount_points() -> set[str]:
    # A directory bound to another one of the same file system is not a mount to os.path.ismount.
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    fields = (line.split(" ") for line in lines.splitlines())
    return {re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), one[4]) for one in fields}


def is_ours(name: str) -> bool:
    """Says whether a name is one that publishing gives to what it will remove."""
    return _OURS.fullmatch(name) is not None


def _is_ours_or_litter(name: str) -> bool:
    return name in _LITTER or is_ours(name)


def _list(path: Path) -> list[str]:
    """Names of what a directory holds, but for litter; sorted."""
    names = sorted(name for name in os.listdir(path) if not _is_ours_or_litter(name))
    if RECOVERED in names and _is_mount(Path(os.path.realpath(path))):
        names.remove(RECOVERED)
    return names


def _walk(path: Path) -> Iterator[str]:
    """Names of all files below a directory, and of links and empty directories; sorted."""
    for folder, inner, files in os.walk(path):
        here = Path(folder)
        listed = _list(here)
        inner[:] = [name for name in listed if name in inner]
        links = [name for name in inner if (here / name).is_symlink()]
        for name in sorted([*files, *links]):
            if name in listed:
                yield (here / name).relative_to(path).as_posix()
        if not inner and not files and here != path:
            yield here.relative_to(path).as_posix()


def _read(file: Path) -> bytes:
    if not file.is_file() or file.stat().st_size > _READ_AT_MOST:
        return b""
    return file.read_bytes()


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(file))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
