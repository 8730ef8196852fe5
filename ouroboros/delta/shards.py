"""Spreads tensors and files over files of a limited size, cutting what is larger than one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from ouroboros.delta.record import INDEX, SHARD
from ouroboros.storage.tensors import DTYPES, StoredTensor, write_files

# Room in a header: for itself, and for an entry beside the name (type, shape, two offsets).
_HEADER, _ENTRY = 256, 192


def cut(tensor: StoredTensor, limit: int) -> list[StoredTensor]:
    """Returns a tensor, or flat pieces of it that each fit into a file.

    Args:
        tensor: the whole.
        limit: most bytes of a file.

    Returns:
        The tensor itself, or its pieces in order, by its name and `#1`, `#2`, ...
    """
    most = limit - _HEADER - _room(tensor.name) - 8
    if tensor.nbytes <= most:
        return [tensor]
    count = math.prod(tensor.shape)
    each = most // DTYPES[tensor.kind].itemsize
    return [
        StoredTensor(
            f"{tensor.name}#{number}",
            tensor.kind,
            (min(each, count - start),),
            partial(_range, tensor, start, min(start + each, count)),
        )
        for number, start in enumerate(range(0, count, each), start=1)
    ]


def _range(tensor: StoredTensor, start: int, stop: int) -> Iterator[torch.Tensor]:
    at = 0
    for piece in tensor.pieces():
        first, last = max(start - at, 0), min(stop - at, piece.numel())
        if first < last:
            yield piece[first:last]
        at += piece.numel()
        if at >= stop:
            return


def _room(name: str) -> int:
    return len(json.dumps(name)) + _ENTRY


def write_shards(
    folder: Path, tensors: Iterable[StoredTensor], limit: int
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Writes tensors into safetensors files of at most `limit` bytes, and their index.

    Args:
        folder: the directory to write into.
        tensors: in the order in which the files are filled.
        limit: most bytes of a file.

    Returns:
        The sha256 of each file by its name, the index not among them, and the names of the pieces
        of each tensor.

    Raises:
        OSError: the disk is full or can't be written.
    """
    pieces = {tensor.name: cut(tensor, limit) for tensor in tensors}
    groups = _group([one for ones in pieces.values() for one in ones], limit)
    files = {
        SHARD.format(number=number, count=len(groups)): group
        for number, group in enumerate(groups, start=1)
    }
    hashes = write_files(folder, files, INDEX)
    return hashes, {name: [one.name for one in ones] for name, ones in pieces.items()}


def _group(pieces: Sequence[StoredTensor], limit: int) -> list[list[StoredTensor]]:
    groups: list[list[StoredTensor]] = []
    left = 0
    for piece in pieces:
        size = piece.nbytes + _room(piece.name)
        if size > left:
            groups.append([])
            left = limit - _HEADER
        groups[-1].append(piece)
        left -= size
    return groups
