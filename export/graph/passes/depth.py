"""Depth as a vector of one element, which TensorRT plans take: Triton knows no scalars."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.errors import ExportError
from export.graph.passes.result import PassResult
from runtime.bundle.contract import DEPTH


def vector_depth(model: ir.Model) -> PassResult:
    """Turns the input `depth` from a scalar into `[1]`; a Squeeze makes the scalar again.

    Triton describes no tensor without dimensions, and its TensorRT backend compares the number
    of dimensions with the plan's. `export.tensorrt.builder` builds every plan from a graph after
    this pass, so that one plan serves our own engine and Triton.

    Args:
        model: changed in place.

    Raises:
        ExportError: the graph has no input `depth`.

    Source: Triton's tensorrt_backend, CompareShapeDimsSupported.
    """
    graph = model.graph
    given = next((value for value in graph.inputs if value.name == DEPTH), None)
    if given is None:
        raise ExportError("the graph has no input depth; export the checkpoint again")
    if given.shape is not None and len(given.shape) == 1:
        return PassResult("vector_depth", 0, "depth is a vector already")
    axis = ir.Value(
        name="depth_axis",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([1]),
        const_value=ir.tensor(np.array([0], np.int64), name="depth_axis"),
    )
    graph.register_initializer(axis)
    node = ir.node("Squeeze", [given, axis], name="depth_scalar")
    (scalar,) = node.outputs
    scalar.name, scalar.type, scalar.shape = "depth_scalar", given.type, ir.Shape([])
    given.replace_all_uses_with(scalar)
    node.replace_input_with(0, given)
    graph.insert_before(graph[0], node)
    given.shape = ir.Shape([1])
    return PassResult("vector_depth", 1, "depth is [1], a Squeeze makes it a scalar")
