"""Writes safetensors files piece by piece, and hashes what it writes.

The header is made from names, types and shapes alone; each tensor is asked for when its turn comes,
a piece at a time, so that writing needs no memory for a second copy of any of them. The bytes are
those that safetensors itself would write.

Source: the safetensors format: 8 bytes of length, a JSON header, then the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

# In the order in which safetensors lays tensors out: by type, and by name within a type.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
METADATA = {"format": "pt"}  # what transformers asks of a file of PyTorch's
PIECE = 1 << 22  # numbers converted at a time
_ALIGNMENT = 8


class Sink(Protocol):
    """What bytes are written to: a binary file, or nothing but their hash."""

    def write(self, data: Any, /) -> Any:
        """Takes the next bytes."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to be written.

    Attributes:
        name: by which it is found.
        kind: the type it is stored in, as safetensors calls it; a key of DTYPES.
        shape: its dimensions.
        pieces: returns its numbers, flat and in order, in tensors of any size and float type.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * DTYPES[self.kind].itemsize


def pieces_of(value: torch.Tensor) -> Iterator[torch.Tensor]:
    """Returns the numbers of a tensor, flat, PIECE of them at a time."""
    yield from value.detach().reshape(-1).split(PIECE)


def write_tensors(
    sink: Sink, tensors: Sequence[StoredTensor], metadata: Mapping[str, str] = METADATA
) -> str:
    """Writes the content of a safetensors file.

    Args:
        sink: where to, from its start.
        tensors: in any order, each of another name.
        metadata: the file's own.

    Returns:
        The sha256 of what was written.

    Raises:
        OSError: the disk is full or can't be written.
        ValueError: a tensor has more or fewer numbers than its shape says.
    """
    kinds = list(DTYPES)
    ordered = sorted(tensors, key=lambda one: (kinds.index(one.kind), one.name.encode()))
    header = _header(ordered, metadata)
    digest = hashlib.sha256(header)
    sink.write(header)
    for tensor in ordered:
        dtype, left = DTYPES[tensor.kind], tensor.nbytes
        for piece in tensor.pieces():
            content = piece.to("cpu", dtype).contiguous().view(torch.uint8).numpy().data
            left -= content.nbytes
            digest.update(content)
            sink.write(content)
        if left:
            came = tensor.nbytes - left
            raise ValueError(f"{tensor.name}: {came} bytes came, its shape says {tensor.nbytes}")
    return digest.hexdigest()


def write_files(
    folder: Path, files: Mapping[str, Sequence[StoredTensor]], index: str
) -> dict[str, str]:
    """Writes several safetensors files and the index that says which holds a tensor.

    Args:
        folder: the directory to write into.
        files: the tensors of each file, by its name.
        index: the index's name.

    Returns:
        The sha256 of each file by its name, the index not among them.

    Raises:
        OSError: the disk is full or can't be written.
    """
    hashes = {}
    for name, tensors in files.items():
        with (folder / name).open("wb") as file:
            hashes[name] = write_tensors(file, tensors)
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors)
    places = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
    content = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / index).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
    return hashes


def _header(ordered: Sequence[StoredTensor], metadata: Mapping[str, str]) -> bytes:
    # In order: safetensors hands metadata out in another one each time.
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.nbytes
        entries[tensor.name] = {
            "dtype": tensor.kind,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
