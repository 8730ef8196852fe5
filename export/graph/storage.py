"""Writes a graph with its weights in one data file, equal bytes once, one tensor in memory.

A tensor is asked for its content when its turn comes, so that lazy ones are made one by one.

Initializers of the same bytes (a tied head and embedding, seen as integers of different types) get
one range of the file.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.graph.passes.weight_only import graphs_of

THRESHOLD_BYTES = 1024
PAGE_BYTES = 4096  # large tensors start a page, so that a runtime may map them
LARGE_BYTES = 1 << 20
ALIGNMENT_BYTES = 64
DATA_SUFFIX = ".data"


def save_graph(model: ir.Model, path: Path, share: bool = True) -> dict[str, str]:
    """Writes `path` and, beside it, a data file with every initializer of 1 KiB or more.

    Afterwards the model's large tensors are references into that file.

    Args:
        model: the graph.
        path: the file to write.
        share: give initializers of equal bytes one range. TensorRT refuses that where they are of
            different types.

    Returns:
        The sha256 of both files by name. That of the weights is of the bytes that were given to be
        written, so that they are not read back for it.

    Raises:
        OSError: the disk is full or can't be written.
    """
    data = path.with_name(path.name + DATA_SUFFIX)
    ranges: dict[tuple[str, int], int] = {}
    digest = hashlib.sha256()
    with data.open("wb") as file:
        for value in _large(model):
            tensor = value.const_value
            if tensor is None:
                continue
            content = _content(tensor)
            size = len(content)
            key = (hashlib.sha256(content).hexdigest() if share else str(value.name), size)
            if key not in ranges:
                step = PAGE_BYTES if size >= LARGE_BYTES else ALIGNMENT_BYTES
                padding = b"\0" * (-file.tell() % step)
                file.write(padding)
                digest.update(padding)
                ranges[key] = file.tell()
                file.write(content)
                digest.update(content)
            del content  # before the next one is made
            value.const_value = ir.ExternalTensor(
                data.name,
                ranges[key],
                size,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
                base_dir=path.parent,
            )
    ir.save(model, path)
    with path.open("rb") as written:
        graph = hashlib.file_digest(written, "sha256").hexdigest()
    return {path.name: graph, data.name: digest.hexdigest()}


def _content(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """Returns a tensor's bytes as they are stored, without a copy where memory holds them so."""
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        return tensor.tobytes()
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data


def _large(model: ir.Model) -> Iterator[ir.Value]:
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.nbytes >= THRESHOLD_BYTES:
                yield value
