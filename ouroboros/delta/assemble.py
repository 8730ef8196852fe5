"""The weight files of a checkpoint, put together from a delta's tensors and its source's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ouroboros.delta.record import INDEX, TensorRecord, WeightsRecord
from ouroboros.errors import CheckpointError
from ouroboros.model.names import current_name
from ouroboros.source.locate import FLOATS, one_line, require_finite_tensor
from ouroboros.source.weights import Original
from ouroboros.storage.tensors import StoredTensor, pieces_of

ANEW = "get an intact copy of the delta"


@dataclass(frozen=True)
class Pieces:
    """The tensors in a delta's own files, read one at a time.

    Attributes:
        folder: the delta.
        files: the file that holds each, by its name.
        counts: how many numbers each has.
    """

    folder: Path
    files: dict[str, Path]
    counts: dict[str, int]

    def read(self, name: str) -> torch.Tensor:
        """Returns one, in the type it is stored in.

        Raises:
            CheckpointError: it can't be read, or holds NaN or infinity.
        """
        try:
            with safe_open(self.files[name], framework="pt") as file:
                value: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.files[name]}: {one_line(error)}", ANEW) from error
        require_finite_tensor(name, value, str(self.folder))
        return value


def open_pieces(folder: Path, own: Mapping[str, object]) -> Pieces:
    """Reads the index of a delta's tensors and the headers of their files.

    Args:
        folder: the delta.
        own: names of its own files.

    Raises:
        CheckpointError: index and files are not of one delta, or a file is damaged.
    """
    shards = sorted(name for name in own if name.endswith(".safetensors"))
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        listed = {str(name): str(file) for name, file in index["weight_map"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        reason = one_line(error)
        raise CheckpointError(f"{folder / INDEX}: no index of tensors: {reason}", ANEW) from error
    files: dict[str, Path] = {}
    counts: dict[str, int] = {}
    for shard in shards:
        try:
            with safe_open(folder / shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no dict)
                    part = file.get_slice(name)
                    if name in files or listed.get(name) != shard or part.get_dtype() not in FLOATS:
                        raise CheckpointError(
                            f"{folder / shard}: holds {name!r:.80}, which {INDEX} has elsewhere or "
                            "not at all, or which is no weight",
                            ANEW,
                        )
                    files[name], counts[name] = folder / shard, math.prod(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / shard}: {one_line(error)}", ANEW) from error
    if gone := sorted(listed.keys() - files.keys()):
        raise CheckpointError(f"{folder}: {INDEX} names {gone[0]!r:.80}, which no file holds", ANEW)
    return Pieces(folder, files, counts)


def check_weights(
    folder: Path,
    weights: Mapping[str, WeightsRecord],
    pieces: Pieces,
    original: Original,
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Holds what a delta says of its tensors against the config, its files and the source.

    Args:
        folder: the delta.
        weights: of its record.
        pieces: its own tensors.
        original: the source.
        expected: the shape of each tensor that the checkpoint must have, by its current name.

    Raises:
        CheckpointError: one is missing, left over, twice there or of another shape.
    """
    found: dict[str, TensorRecord] = {}
    used: set[str] = set()
    for file in weights.values():
        for name, tensor in file.tensors.items():
            if current_name(name) in found:
                raise CheckpointError(f"{folder}: {name} is in two weight files", ANEW)
            found[current_name(name)] = tensor
            if tensor.source and tensor.source not in original.names:
                raise CheckpointError(
                    f"{folder}: {name:.80} is the source's {tensor.source!r:.80}, which it lacks",
                    ANEW,
                )
            for piece in tensor.pieces:
                if piece not in pieces.files or piece in used:
                    state = "is used twice" if piece in used else "is in none of its files"
                    raise CheckpointError(f"{folder}: {piece!r:.80} {state}", ANEW)
                used.add(piece)
            held = sum(pieces.counts[piece] for piece in tensor.pieces)
            if tensor.pieces and held != math.prod(tensor.shape):
                raise CheckpointError(
                    f"{folder}: {name:.80} has {held:,} numbers, its shape is {list(tensor.shape)}",
                    ANEW,
                )
    for name in sorted(expected.keys() | found.keys()):
        has = found[name].shape if name in found else None
        if has != expected.get(name):
            raise CheckpointError(
                f"{folder}: the tensor {name:.80} has the shape {_shape(has)}, config.json asks "
                f"for {_shape(expected.get(name))}",
                ANEW,
            )
    if left := sorted(pieces.files.keys() - used):
        raise CheckpointError(f"{folder}: holds {left[0]!r:.80}, which is part of no tensor", ANEW)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def stored_tensors(file: WeightsRecord, pieces: Pieces, original: Original) -> list[StoredTensor]:
    """Returns the tensors of one weight file of the checkpoint, to be read when they are written.

    Args:
        file: what it holds.
        pieces: the delta's own tensors.
        original: the source.
    """
    return [
        StoredTensor(name, one.kind, one.shape, partial(_read, name, one, pieces, original))
        for name, one in file.tensors.items()
    ]


def _read(
    name: str, tensor: TensorRecord, pieces: Pieces, original: Original
) -> Iterator[torch.Tensor]:
    if not tensor.source:
        for piece in tensor.pieces:
            yield pieces.read(piece).reshape(-1)
        return
    value = original.read(tensor.source)
    if tuple(value.shape) != tensor.shape:
        raise CheckpointError(
            f"{pieces.folder}: {name} is {list(tensor.shape)}, the source's {tensor.source} "
            f"{list(value.shape)}",
            ANEW,
        )
    yield from pieces_of(value)
