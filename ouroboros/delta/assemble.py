"""The weight files of a checkpoint, put together from a delta's tensors and its source's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ouroboros.delta.record import INDEX, TensorRecord, UpdateRecord, WeightsRecord
from ouroboros.errors import CheckpointError
from ouroboros.model.names import current_name
from ouroboros.source.locate import FLOATS, require_finite_tensor
from ouroboros.source.weights import Original
from ouroboros.storage.adapters import Update, add_updates, factor_names
from ouroboros.storage.tensors import StoredTensor, pieces_of
from runtime.errors import one_line

ANEW = "get an intact copy of the delta"


@dataclass(frozen=True)
class Pieces:
    """The tensors in a delta's own files, read one at a time.

    Attributes:
        folder: the delta.
        files: the file that holds each, by its name.
        counts: how many numbers each has.
        kinds: the type of each, as safetensors calls it.
    """

    folder: Path
    files: dict[str, Path]
    counts: dict[str, int]
    kinds: dict[str, str]

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
    kinds: dict[str, str] = {}
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
                    kinds[name] = part.get_dtype()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / shard}: {one_line(error)}", ANEW) from error
    if gone := sorted(listed.keys() - files.keys()):
        raise CheckpointError(f"{folder}: {INDEX} names {gone[0]!r:.80}, which no file holds", ANEW)
    return Pieces(folder, files, counts, kinds)


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
            for own, shape in _own_parts(tensor):
                for piece in own:
                    if piece not in pieces.files or piece in used:
                        state = "is used twice" if piece in used else "is in none of its files"
                        raise CheckpointError(f"{folder}: {piece!r:.80} {state}", ANEW)
                    used.add(piece)
                held = sum(pieces.counts[piece] for piece in own)
                if held != math.prod(shape):
                    raise CheckpointError(
                        f"{folder}: {name:.80} has {held:,} numbers, its shape is {list(shape)}",
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


def _own_parts(tensor: TensorRecord) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """The delta's own parts of a tensor, itself or factors: their pieces, and their shape."""
    if tensor.pieces:
        yield tensor.pieces, tensor.shape
    for update in tensor.updates:
        out, into = tensor.shape
        yield update.a, (update.rank, into)
        yield update.b, (out, update.rank)


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
        yield from _read_pieces(tensor.pieces, pieces)
        return
    value = original.read(tensor.source)
    if tuple(value.shape) != tensor.shape:
        raise CheckpointError(
            f"{pieces.folder}: {name} is {list(tensor.shape)}, the source's {tensor.source} "
            f"{list(value.shape)}",
            ANEW,
        )
    if tensor.updates:
        updates = (_read_update(tensor, one, pieces) for one in tensor.updates)
        value = add_updates(value, updates)
        require_finite_tensor(name, value, str(pieces.folder))
    yield from pieces_of(value)


def _read_update(tensor: TensorRecord, update: UpdateRecord, pieces: Pieces) -> Update:
    out, into = tensor.shape
    a, b = (
        torch.cat([pieces.read(one).reshape(-1) for one in own]) for own in (update.a, update.b)
    )
    return Update(a.reshape(update.rank, into), b.reshape(out, update.rank))


def stored_factors(weights: Mapping[str, WeightsRecord], pieces: Pieces) -> list[StoredTensor]:
    """Returns what `adapters.safetensors` of the checkpoint holds; none where it has no such file.

    Args:
        weights: of a delta's record.
        pieces: its own tensors.
    """
    factors: list[StoredTensor] = []
    for file in weights.values():
        for weight, tensor in file.tensors.items():
            parts = list(_own_parts(tensor)) if tensor.updates else []
            numbers = range(1, len(tensor.updates) + 1)
            names = [name for number in numbers for name in factor_names(weight, number)]
            for name, (own, shape) in zip(names, parts, strict=True):
                read = partial(_read_pieces, own, pieces)
                factors.append(StoredTensor(name, pieces.kinds[own[0]], shape, read))
    return factors


def _read_pieces(names: Sequence[str], pieces: Pieces) -> Iterator[torch.Tensor]:
    for name in names:
        yield pieces.read(name).reshape(-1)
