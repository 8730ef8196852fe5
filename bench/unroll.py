"""Writes the Loop of a graph out as so many copies of its body, to measure what looping costs.

The unrolled graph computes the same, for one depth only, which its `depth` input is still to be
given. Nothing ships it: it is the yardstick of `bench.decode` and a second opinion in the tests.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.errors import ExportError
from export.graph.passes.reshapes import remove_unused
from runtime.bundle.manifest import HASH_NAME, MANIFEST_NAME
from runtime.bundle.reader import CASES_NAME, open_bundle, write_manifest


def unroll_loop(model: ir.Model, depth: int) -> ir.Model:
    """Replaces the one Loop of `model` by `depth` copies of its body, in place.

    Weights stay single: the body's initializers become the graph's, read by every copy. Quantised
    ones are the exception: ONNX Runtime fuses an integer weight into the product that reads it only
    where nothing else does, and unfused the yardstick would be three times slower than need be.

    Args:
        model: as `export.graph.stitch.build_graph` makes it.
        depth: copies, at least 1.

    Returns:
        The same model.

    Raises:
        ExportError: the depth is below 1, or the graph does not hold exactly one Loop.

    Source: ONNX operator Loop, opset 24: no initial condition, one carried value, scan outputs.
    """
    if depth < 1:
        raise ExportError(f"depth={depth} can't be unrolled; give 1 or more")
    graph = model.graph
    loops = [node for node in graph if node.op_type == "Loop"]
    if len(loops) != 1:
        raise ExportError(f"the graph holds {len(loops)} Loop nodes, not 1; export it again")
    (loop,) = loops
    body = loop.attributes["body"].as_graph()
    for name, value in list(body.initializers.items()):
        del body.initializers[name]
        graph.initializers[name] = value

    carried: ir.Value | None = loop.inputs[2]
    stacks: list[list[ir.Value | None]] = [[] for _ in loop.outputs[1:]]
    nodes: list[ir.Node] = []
    for step in range(depth):
        number = _constant(f"unrolled.{step}.number", np.array(step, np.int64))
        graph.initializers[number.name or ""] = number
        copies, results = _copy_body(body, step, [number, None, carried])
        for node in copies:
            if node.op_type == "DequantizeLinear":
                _own_weights(graph, node, step)
                for scales in node.inputs:  # stored in half the bytes, perhaps
                    cast = None if scales is None else scales.producer()
                    if cast is not None:
                        _own_weights(graph, cast, step)
        nodes += copies
        carried, scanned = results[1], results[2:]
        for stack, result in zip(stacks, scanned, strict=True):
            stack.append(result)
    axis = _constant("unrolled.axis", np.array([0], np.int64))
    graph.initializers[axis.name or ""] = axis
    ends: list[ir.Value | None] = [carried]
    for position, stack in enumerate(stacks):
        joined, made = _stack(stack, axis, f"unrolled.scan_{position}")
        nodes += made
        ends.append(joined)
    graph.insert_before(loop, nodes)
    for old, new in zip(loop.outputs, ends, strict=True):
        if new is not None:
            old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(loop, safe=True)
    remove_unused(graph)
    return model


def write_unrolled(bundle_dir: Path, out_dir: Path, depth: int) -> None:
    """Writes a bundle like another, its graph unrolled at one depth.

    The recorded cases are left out: they cover other depths too.

    Args:
        bundle_dir: a bundle with a Loop.
        out_dir: directory to make.
        depth: the only depth the new bundle can be run at.

    Raises:
        BundleError: `bundle_dir` is not a whole bundle.
        ExportError: as for `unroll_loop`.
    """
    bundle = open_bundle(bundle_dir)
    graphs = bundle.manifest.graphs
    graph_name = graphs.onnx.file
    model = unroll_loop(ir.load(bundle.file(graph_name)), depth)
    out_dir.mkdir(parents=True)
    ir.save(
        model, out_dir / graph_name, external_data=f"{graph_name}.data", size_threshold_bytes=1024
    )
    skipped = {graph_name, f"{graph_name}.data", MANIFEST_NAME, HASH_NAME, CASES_NAME}
    for name in bundle.manifest.files:
        if name not in skipped:
            shutil.copyfile(bundle.file(name), out_dir / name)
    fields = {
        field.name: getattr(bundle.manifest, field.name)
        for field in dataclasses.fields(bundle.manifest)
        if field.name not in ("format_version", "files")
    }
    write_manifest(out_dir, **fields)


def _copy_body(
    body: ir.Graph, step: int, inputs: Sequence[ir.Value | None]
) -> tuple[list[ir.Node], list[ir.Value | None]]:
    """Clones the body's nodes; values from outside it are read as they are."""
    known: dict[ir.Value | None, ir.Value | None] = dict(zip(body.inputs, inputs, strict=True))
    copies = []
    for node in body:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [known.get(value, value) for value in node.inputs],
            attributes=list(node.attributes.values()),
            num_outputs=len(node.outputs),
            overload=node.overload,
            name=f"unrolled.{step}.{node.name}",
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type = f"unrolled.{step}.{old.name}", old.type
            known[old] = new
        copies.append(copy)
    return copies, [known.get(value, value) for value in body.outputs]


def _own_weights(graph: ir.Graph, node: ir.Node, step: int) -> None:
    """Gives a node its own copy of every initializer that it reads."""
    for index, value in enumerate(node.inputs):
        if value is None or value.const_value is None:
            continue
        name = f"unrolled.{step}.{value.name}"
        own = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
        graph.initializers[name] = own
        node.replace_input_with(index, own)


def _stack(
    values: Sequence[ir.Value | None], axis: ir.Value, name: str
) -> tuple[ir.Value, list[ir.Node]]:
    nodes = []
    for step, value in enumerate(values):
        node = ir.node("Unsqueeze", [value, axis], name=f"{name}.{step}")
        node.outputs[0].name = f"{name}.{step}"
        nodes.append(node)
    joined = ir.node(
        "Concat", [node.outputs[0] for node in nodes], attributes={"axis": 0}, name=name
    )
    joined.outputs[0].name = name
    return joined.outputs[0], [*nodes, joined]


def _constant(name: str, array: np.ndarray) -> ir.Value:
    return ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape(list(array.shape)),
        const_value=ir.tensor(array, name=name),
    )
