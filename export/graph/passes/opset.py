"""A graph at another opset.

The exporter traces at opset 24. What the graph uses of it says the same at opset 21: the
operators that changed in between (Cast, Constant, Cos, Loop, Reshape, Shape, Sin, Squeeze,
Transpose, Unsqueeze) only learned new element types, or attributes whose default is the old
behaviour. So going down is a matter of proving that no node needs what is newer.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from export.errors import ExportError
from export.graph.passes.result import PassResult
from export.options import OPSET, OPSETS


def check_opset(opset: int) -> None:
    """Refuses an opset that graphs are not made at.

    Raises:
        ExportError: it is not one of `OPSETS`.
    """
    if opset not in OPSETS:
        raise ExportError(
            f"opset={opset} is not made",
            f"allowed: {', '.join(map(str, OPSETS))} (the first with "
            "int4 and block-wise DequantizeLinear, and the one the tracer writes)",
        )


def set_opset(model: ir.Model, opset: int) -> PassResult:
    """Declares a graph traced at opset 24 as one of `opset`, if every node means the same there.

    Args:
        model: changed in place; left as it was where an error is raised.
        opset: 21 or 24.

    Raises:
        ExportError: an opset not made, or a node that needs a newer one; it is named.

    Source: the operators' schemas in the onnx package, which hold every version of each.
    """
    check_opset(opset)
    graphs = list(model.graphs())
    # A graph of ONNX's own operators: others have domains, and so versions, of their own.
    nodes = [node for graph in graphs for node in graph if node.domain in ("", "ai.onnx")]
    dropped = [drop for node in nodes for drop in _check_node(node, opset)]
    for node, name in dropped:
        node.attributes.pop(name)
    before = model.graph.opset_imports.get("")
    for graph in graphs:
        graph.opset_imports[""] = opset
    changed = 0 if before == opset else len(nodes)
    return PassResult("set_opset", changed, f"nodes now read at opset {opset}, were {before}")


def _check_node(node: ir.Node, opset: int) -> list[tuple[ir.Node, str]]:
    """Returns the attributes to drop, which say what the older operator does anyway."""
    from onnx import defs, helper

    try:
        old = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        raise _too_new(node, opset, "the operator is newer") from None
    new = defs.get_schema(node.op_type, OPSET, "")
    drop = []
    for name, attribute in node.attributes.items():
        if name in old.attributes:
            continue
        default = new.attributes[name].default_value if name in new.attributes else None
        if default is None or helper.get_attribute_value(default) != _raw(attribute.value):
            raise _too_new(node, opset, f"its attribute {name} is newer")
        drop.append((node, name))
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype is None:
            continue
        # A variadic last input stands for all that follow.
        place = min(index, len(old.inputs) - 1)
        allowed = _types(old, old.inputs[place].type_str)
        if allowed and _type_name(value.dtype) not in allowed:
            raise _too_new(node, opset, f"{value.dtype.name.lower()} inputs are newer")
    return drop


def _types(schema: Any, type_name: str) -> set[str]:
    for constraint in schema.type_constraints:
        if constraint.type_param_str == type_name:
            return {name for name in constraint.allowed_type_strs if name.startswith("tensor(")}
    return {type_name}


_NAMES = {"FLOAT": "float", "DOUBLE": "double"}


def _type_name(dtype: ir.DataType) -> str:
    return f"tensor({_NAMES.get(dtype.name, dtype.name.lower())})"


def _raw(value: Any) -> Any:
    """The value as a protobuf holds it: text is bytes there."""
    return value.encode() if isinstance(value, str) else value


def _too_new(node: ir.Node, opset: int, why: str) -> ExportError:
    return ExportError(
        f"the graph can't be written at opset {opset}: {why} than that in {node.op_type} "
        f"({node.name})",
        f"export with --opset {OPSET}",
    )
