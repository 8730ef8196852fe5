"""Which files hold the weights of an original model, and their hashes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ouroboros.errors import SourceError
from runtime.errors import one_line
from runtime.files.hashing import hash_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_PATTERNS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.h5", "*.msgpack", "*.gguf")
_POINTER = b"version https://git-lfs"
_TRAINING = {"training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin"}


@dataclass(frozen=True)
class WeightFiles:
    """The files that a model's weights are read from.

    Attributes:
        files: safetensors, pickled files or one .gguf file.
        pickled: they are pickled, which transformers loads whole.
        unread: names of weight files beside them that are not read.
    """

    files: tuple[Path, ...]
    pickled: bool = False
    unread: tuple[str, ...] = ()


def find_weights(source: str, path: Path, fetch: Callable[..., None]) -> WeightFiles:
    """Finds the weight files of a model: safetensors before pickled ones, as transformers does.

    Args:
        source: the model, for messages.
        path: its directory or .gguf file.
        fetch: makes files of these names stand in the directory where the model has them.

    Raises:
        SourceError: there are none, one that an index names is missing, or two sets of the
            same form lie side by side.
    """
    if path.is_file():
        return WeightFiles((path,))
    for single, index, pickled in ((SINGLE, INDEX, False), (PICKLED, PICKLED_INDEX, True)):
        fetch(single, index)
        if names := _named(source, path, single, index, fetch):
            files = tuple(path / name for name in names)
            _refuse_pointers(source, files)
            beside = {found.name for pattern in _PATTERNS for found in path.glob(pattern)}
            return WeightFiles(files, pickled, tuple(sorted(beside - set(names) - _TRAINING)))
    raise SourceError(
        f"{source}: can't load the weights: there is no {SINGLE}, {INDEX} or {PICKLED}",
        "download it again",
    )


def _refuse_pointers(source: str, files: tuple[Path, ...]) -> None:
    for file in files:
        with file.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise SourceError(
                    f"{source}: {file.name} is a Git LFS pointer, not the weights",
                    "run `git lfs pull` in the clone",
                )


def _named(
    source: str, path: Path, single: str, index: str, fetch: Callable[..., None]
) -> list[str]:
    one, many = (path / single).is_file(), (path / index).is_file()
    if not many:
        return [single] if one else []
    names = _shards(path / index)
    if one and names != [single]:
        raise SourceError(
            f"{source}: holds {single} and {index}, which names other files ({names[0]}, ...)",
            "they may differ, so take away the one that is not meant",
        )
    fetch(*names)
    if gone := [name for name in names if not (path / name).is_file()]:
        raise SourceError(
            f"{source}: can't load the weights: {index} names {gone[0]}, which is missing",
            "download it again",
        )
    return names


def _shards(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise SourceError(
            f"{index}: not a safetensors index: {one_line(error)}", "download it again"
        ) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise SourceError(
                f"{index}: names {name!r:.80}, no file beside it", "download it again"
            )
    if not names:
        raise SourceError(f"{index}: names no file", "download it again")
    return sorted(names)


def hash_files(paths: Iterable[Path]) -> dict[str, str]:
    """Returns the sha256 of files by their names."""
    return {path.name: hash_file(path) for path in dict.fromkeys(paths)}
