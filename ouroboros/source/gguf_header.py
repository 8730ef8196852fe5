"""The header of a .gguf file, read with every count and length checked before it is believed.

Source: the GGUF specification, github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ouroboros.errors import ConfigError, SourceError

MAX_ITEMS = 1 << 22  # of all arrays together; a vocabulary of 256k with its merges has 1.3 million
MAX_ENTRIES = 1 << 16  # keys, tensors
MAX_DIMS = 4
_ALIGNMENT = 32
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    _BOOL: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """A tensor that the header announces.

    Attributes:
        name: as llama.cpp calls it.
        shape: as PyTorch writes it, the fastest dimension last.
        kind: ggml's number of its type.
        start: of its bytes, counted from the start of the data.
        size: its bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """What a .gguf file says of itself.

    Attributes:
        path: the file.
        metadata: values by key; arrays are lists.
        tensors: by name.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _BadHeaderError(Exception):
    """What is wrong with a header; the caller adds the file and what to do."""


class _Cursor:
    """Reads from bytes, never past their end."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.at = 0
        self.items = 0

    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int, what: str) -> bytes:
        if size > self.left():
            raise _BadHeaderError(
                f"{what} at byte {self.at} is {size} bytes long, {self.left()} are left"
            )
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str) -> str:
        content = self.take(self.number("Q", what), what)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise _BadHeaderError(f"{what} is no UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], key)
        if kind == _STRING:
            return self.text(key)
        if kind != _ARRAY:
            raise _BadHeaderError(f"{key:.80} has the unknown value type {kind}")
        item, count = self.number("I", key), self.number("Q", key)
        width = struct.calcsize("<" + _SCALARS[item]) if item in _SCALARS else 8
        if item not in _SCALARS and item != _STRING:
            raise _BadHeaderError(f"{key:.80} is an array of type {item}")
        self.items += count
        if count * width > self.left() or self.items > MAX_ITEMS:
            raise _BadHeaderError(f"{key:.80} is an array of {count} values")
        if item == _STRING:
            return [self.text(key) for _ in range(count)]
        return list(struct.unpack(f"<{count}{_SCALARS[item]}", self.take(count * width, key)))


def read_header(path: Path) -> GgufHeader:
    """Reads and checks the header of a .gguf file; its weights are not touched.

    Raises:
        SourceError: it is truncated, damaged or no GGUF file.
        ConfigError: it is of a version or byte order, or a part of a model, that is not read.
    """
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise _BadHeaderError("it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, _Cursor(data))
    except _BadHeaderError as error:
        raise SourceError(
            f"{path}: truncated or not a GGUF file ({' '.join(str(error).split())})",
            "download it again",
        ) from None
    except OSError as error:
        raise SourceError(
            f"{path}: can't be read: {error.strerror or error}", "make it readable"
        ) from error


def _parse(path: Path, cursor: _Cursor) -> GgufHeader:
    if cursor.take(4, "the mark") != b"GGUF":
        raise _BadHeaderError("it does not begin with GGUF")
    _check_version(path, cursor.number("I", "the version"))
    tensors, entries = cursor.number("Q", "a count"), cursor.number("Q", "a count")
    for count, name in ((tensors, "tensors"), (entries, "keys")):
        if count > min(MAX_ENTRIES, cursor.left() // 13):
            raise _BadHeaderError(f"it announces {count} {name}")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.text("a key")
        if key in metadata:
            raise _BadHeaderError(f"the key {key!r:.80} stands twice")
        metadata[key] = cursor.value(cursor.number("I", key), key)
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _BadHeaderError(f"general.alignment={alignment!r:.80} is no power of two")
    found = _read_tensors(cursor, tensors, alignment)
    _check_places(list(found.values()), -(-cursor.at // alignment) * alignment, len(cursor.data))
    if metadata.get("split.count", 1) not in (0, 1):
        raise ConfigError(
            f"{path}: one of {metadata['split.count']!r:.20} parts of a split model",
            "join them with llama-gguf-split --merge FIRST_PART OUT.gguf and give OUT.gguf",
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise ConfigError(
            f"{path}: its general.type is {kind!r:.40}, no whole model",
            "give the .gguf of the model",
        )
    return GgufHeader(path, metadata, found)


def _check_version(path: Path, version: int) -> None:
    if version in (2, 3):
        return
    if version & 0xFFFF == 0 and version:
        raise ConfigError(
            f"{path}: a big-endian GGUF file",
            "only little-endian ones are read, so convert the "
            "model's Hugging Face directory or hub id",
        )
    if version != 1:
        raise _BadHeaderError(f"its version is {version}, known are 2 and 3")
    raise ConfigError(
        f"{path}: GGUF version 1", "allowed are 2 and 3: write it anew with a current llama.cpp"
    )


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    readable: set[int] = set()
    found: dict[str, GgufTensor] = {}
    for _ in range(count):
        name = cursor.text("a tensor's name")
        if name in found:
            raise _BadHeaderError(f"the tensor {name!r:.80} stands twice")
        dims = cursor.number("I", name)
        if not 1 <= dims <= MAX_DIMS:
            raise _BadHeaderError(f"{name:.80} has {dims} dimensions")
        shape = [cursor.number("Q", name) for _ in range(dims)]
        kind, start = cursor.number("I", name), cursor.number("Q", name)
        numbers = 1
        for length in shape:
            numbers *= length
        if not 0 < numbers < 1 << 63:
            raise _BadHeaderError(f"{name:.80} has the shape {shape}")
        try:
            per_block, bytes_per_block = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise _BadHeaderError(f"{name:.80} has the unknown type {kind}") from None
        if kind not in readable:
            try:
                dequantize(
                    np.zeros((1, bytes_per_block), dtype=np.uint8), GGMLQuantizationType(kind)
                )
            except NotImplementedError:
                label = GGMLQuantizationType(kind).name
                raise ConfigError(
                    f"{name!r:.80} has the type {label}, which can't be read as weights",
                    "give another quantisation of this model",
                ) from None
            readable.add(kind)
        if shape[0] % per_block or start % alignment:
            raise _BadHeaderError(
                f"{name:.80} of shape {shape} at {start} does not fit its type's blocks"
            )
        size = numbers // per_block * bytes_per_block
        found[name] = GgufTensor(name, tuple(reversed(shape)), kind, start, size)
    return found


def _check_places(tensors: list[GgufTensor], data: int, size: int) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.start < end:
            raise _BadHeaderError(f"{tensor.name:.80} overlaps the tensor before it")
        end = tensor.start + tensor.size
        if data + end > size:
            raise _BadHeaderError(
                f"{tensor.name:.80} ends at byte {data + end}, the file at {size}"
            )
