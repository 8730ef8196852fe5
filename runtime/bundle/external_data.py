"""The files that an ONNX graph keeps large weights in, read from its bytes with no need of onnx."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtime.bundle.cures import UNREADABLE
from runtime.errors import BundleError

# Of each message the fields that lead to an external tensor. Of what is not named here nothing is
# read, so that weights inside the graph are jumped over.
# Source: onnx.proto of ONNX 1.19.
LEADS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
KEY, VALUE = 1, 2  # fields of StringStringEntryProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; groups are not of ONNX


def external_files(graph: Path) -> set[str]:
    """Names of the files that hold a graph's external tensors, as the graph writes them.

    Args:
        graph: an ONNX file.

    Raises:
        BundleError: it can't be read, or is not a protobuf.
    """
    try:
        content = memoryview(graph.read_bytes())
        return _locations(content)
    except OSError as error:
        raise BundleError(f"cannot read {graph}: {error.strerror or error}", UNREADABLE) from error
    except ValueError as error:
        raise BundleError(
            f"cannot load {graph}, no ONNX file: {error}", "export it again"
        ) from error


def _locations(model: memoryview) -> set[str]:
    found = set()
    waiting = [("Model", model)]  # not recursion: a file may nest as deep as it likes
    while waiting:
        kind, message = waiting.pop()
        if kind == "Entry":
            pair = {field: bytes(value) for field, value in _fields(message)}
            if pair.get(KEY) == b"location":
                # Strict: two names that decode alike are two files to ONNX Runtime.
                found.add(pair.get(VALUE, b"").decode())
            continue
        leads = LEADS[kind]
        waiting += [(leads[field], part) for field, part in _fields(message) if field in leads]
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of the fields of a message that have a length.

    Raises:
        ValueError: it is cut off, or holds what protobuf does not write.
    """
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        field, wire = tag >> 3, tag & 7
        if not 0 < field < 1 << 29:
            raise ValueError(f"a field has the number {field}")
        if wire == VARINT:
            _, position = _varint(message, position)
        elif wire == FIXED64:
            position += 8
        elif wire == FIXED32:
            position += 4
        elif wire == BYTES:
            size, start = _varint(message, position)
            position = start + size
            if position <= end:
                yield field, message[start:position]
        else:
            raise ValueError(f"a field has the wire type {wire}")
    if position > end:
        raise ValueError("it ends in the middle of a field")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it ends in the middle of a number")
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number has more than 10 bytes")
