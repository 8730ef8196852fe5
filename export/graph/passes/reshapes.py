"""Constant target shapes for Reshape.

The exporter computes a Reshape's target from Shape, Gather and Concat nodes. Where every target
dimension is a number, a copy of the input's dimension at the same place (0) or the single unknown
(-1), a constant says the same: about fifteen nodes less in every step of the loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from export.graph.passes.result import PassResult


def constant_reshapes(model: ir.Model) -> PassResult:
    """Replaces computed Reshape targets by constants, removes what is left unused.

    Args:
        model: changed in place; its values must have shapes.
    """
    changed = 0
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx"):
            continue
        target = constant_target(node.inputs[0], node.outputs[0])
        if target is None or (node.inputs[1] is not None and node.inputs[1].is_initializer()):
            continue
        name = f"{node.outputs[0].name}_target"
        value = ir.Value(
            name=name,
            shape=ir.Shape([len(target)]),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(np.array(target, dtype=np.int64), name=name),
        )
        graph.register_initializer(value)
        node.replace_input_with(1, value)
        node.attributes.pop("allowzero", None)
        changed += 1
    remove_unused(graph)
    return PassResult("constant_reshapes", changed, "Reshape nodes given a constant target")


def constant_target(source: Any, result: Any) -> list[int] | None:
    """Returns the constant target of a reshape from `source` to `result`, or None."""
    if source is None or source.shape is None or result.shape is None:
        return None
    target = []
    for place, size in enumerate(result.shape):
        if isinstance(size, int):
            target.append(size)
        elif place < len(source.shape) and str(source.shape[place]) == str(size):
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def remove_unused(graph: ir.Graph) -> None:
    """Removes nodes and initializers that nothing reads."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]
