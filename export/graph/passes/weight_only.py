"""Weight-only quantisation: integers and scales in place of float weights, in standard operators.

A MatMul reads `DequantizeLinear` of its weight `[in, out]`, axis 0, an initializer of the same
graph: the form that ONNX Runtime fuses to MatMulNBits, inside a Loop body too.

Source: ONNX operator DequantizeLinear, opset 21 (blocks, 4-bit integers).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from export.errors import ExportError
from export.graph.passes.result import PassResult
from export.quantize.weights import QuantizedWeight, pack

STORED_HALF = "stored_half"  # marks a node that casts what is stored in half the bytes
_TYPES = {
    (4, True): (ir.DataType.INT4, ml_dtypes.int4),
    (4, False): (ir.DataType.UINT4, ml_dtypes.uint4),
    (8, True): (ir.DataType.INT8, np.int8),
    (8, False): (ir.DataType.UINT8, np.uint8),
}


def quantize_weights(
    model: ir.Model, weights: Iterable[tuple[str, QuantizedWeight]], half_scales: bool = True
) -> PassResult:
    """Replaces initializers by their integers, scales and a DequantizeLinear.

    Args:
        model: the stitched graph.
        weights: pairs of an initializer's name and its integers, of its shape `[in, out]`; asked
            for one by one, and held only in packed form.
        half_scales: store scales as float16 where that is what they are; ONNX Runtime casts them
            when it loads them, and fuses what reads them as before.

    Raises:
        ExportError: the graph has no such initializer.
    """
    owners = {name: graph for graph in graphs_of(model) for name in graph.initializers}
    bits: list[int] = []
    for name, weight in weights:
        if name not in owners:
            raise ExportError(f"the graph has no weight {name} to quantise", "this is a bug")
        graph = owners[name]
        old = graph.initializers[name]
        narrow = half_scales and weight.half_scales
        cast = _cast_half(graph, f"{name}_scales", weight.scales) if narrow else None
        scales = cast.outputs[0] if cast else _add_floats(graph, f"{name}_scales", weight.scales)
        parts = [_add_packed(graph, f"{name}_values", weight.values, weight), scales]
        if weight.zeros is not None:
            parts.append(_add_packed(graph, f"{name}_zeros", weight.zeros, weight))
        node = ir.node(
            "DequantizeLinear",
            parts,
            attributes={"axis": 0, "block_size": weight.block},
            name=f"{name}_dequantize",
        )
        node.outputs[0].name = f"{name}_dequantized"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        _put_before_uses(graph, old, *([cast] if cast else []), node)
        del graph.initializers[name]
        bits.append(weight.bits)
    kinds = ", ".join(f"{number} bits" for number in sorted(set(bits)))
    return PassResult("quantize_weights", len(bits), f"float weights stored in {kinds}")


def store_half(model: ir.Model, names: Collection[str]) -> PassResult:
    """Stores float32 initializers as float16, cast back where they are read."""
    changed = 0
    for graph in graphs_of(model):
        for name in [name for name in graph.initializers if name in names]:
            old = graph.initializers[name]
            if old.const_value is None:
                raise ExportError(f"the weight {name} has no value", "this is a bug")
            node = _cast_half(graph, name, old.const_value.numpy())
            _put_before_uses(graph, old, node)
            del graph.initializers[name]
            changed += 1
    return PassResult("store_half", changed, "Controller and low-rank bases stored as float16")


def _cast_half(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Node:
    """Adds values as a float16 initializer; returns the node that casts them to float32."""
    half = values.astype(np.float16)
    stored = _add(graph, f"{name}_half", ir.tensor(half, name=f"{name}_half"), half.shape)
    node = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT.value})
    node.name = f"{name}_cast"
    node.meta[STORED_HALF] = True
    node.outputs[0].name = f"{name}_float"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node


def _put_before_uses(graph: ir.Graph, old: ir.Value, *nodes: ir.Node) -> None:
    """Reads the last of `nodes` in place of a weight; they stand beside its first reader."""
    readers = {use.node for use in old.uses()}
    if not readers:
        raise ExportError(f"the graph does not read the weight {old.name}", "this is a bug")
    graph.insert_before(next(one for one in graph if one in readers), nodes)
    old.replace_all_uses_with(nodes[-1].outputs[0])


def graphs_of(model: ir.Model) -> Iterator[ir.Graph]:
    """The graph and the bodies of its Loops."""
    yield model.graph
    for node in list(model.graph):
        if node.op_type == "Loop":
            yield node.attributes["body"].as_graph()


def _add_floats(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    return _add(graph, name, ir.tensor(np.ascontiguousarray(values), name=name), values.shape)


def _add_packed(
    graph: ir.Graph, name: str, values: np.ndarray, weight: QuantizedWeight
) -> ir.Value:
    dtype, numpy_type = _TYPES[weight.bits, weight.zeros is None]
    tensor: ir.TensorProtocol
    if weight.bits == 4:
        packed = pack(values, 4).reshape(-1)
        tensor = ir.PackedTensor(packed, dtype, shape=ir.Shape(values.shape), name=name)
    else:
        tensor = ir.tensor(values.astype(numpy_type, copy=False), name=name)
    return _add(graph, name, tensor, values.shape)


def _add(graph: ir.Graph, name: str, tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.Value:
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor
    )
    graph.initializers[name] = value
    return value
