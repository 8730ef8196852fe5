"""Stitches the traced parts into one graph: prelude, a Loop over the step, coda.

`depth` is the Loop's trip count. The form is the one both ONNX Runtime and TensorRT take: no
initial condition and a body whose condition output is constant true. The cache is never
loop-carried: a step reads its slice, and only new keys and values leave, as scan outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from export.errors import ExportError
from export.graph.passes.result import PassResult
from export.graph.trace import LAYER, plain_weights, read_later, trace_parts
from export.layout import (
    BRIDGE,
    CLOSING,
    HALTING,
    HEAD,
    OPENING,
    STEP,
    TABLE,
    lay_head,
    layer_name,
)
from export.precision import PRECISIONS, Precision
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.modeling import OuroborosForCausalLM
from runtime.bundle import contract
from runtime.bundle.contract import (
    ATTENTION_MASK,
    DEPTH,
    DEPTH_USED,
    HALT_THRESHOLD,
    INPUT_IDS,
    LOGIT_INDEX,
    LOGITS,
    PARTS,
    PAST_POOL_SUM,
    POOL_SUM,
    POSITION_IDS,
    RECURRENT,
    RECURRENT_OUTPUTS,
    ROW_DEPTH,
    new_name,
    past_name,
)

BOOL = ir.DataType.BOOL
DTYPES = {
    getattr(torch, one.name): ir.DataType[one.onnx] for one in contract.ELEMENT_TYPES.values()
}


def build_graph(
    model: OuroborosForCausalLM, max_depth: int, precision: Precision = PRECISIONS["fp32"]
) -> tuple[ir.Model, list[PassResult]]:
    """Returns the whole model as one ONNX graph with the tensors of the contract.

    Beside it, what was changed in its parts.

    Args:
        model: a float32 model in eval mode.
        max_depth: most steps the graph will be run at; step tables are cut there.
        precision: of products and cache. Weights to be quantised are still floats here, laid
            out as `export.graph.passes.weight_only` takes them.

    Raises:
        ExportError: a part can't be traced.
    """
    config = model.config
    parts = trace_parts(model, precision, max_depth)
    opening, step, closing = parts.opening.graph, parts.step.graph, parts.closing.graph
    bridge = None if parts.bridge is None else parts.bridge.graph
    halting = None if parts.halting is None else parts.halting.graph
    for prefix, part in zip(_PREFIXES, (opening, bridge, halting, step, closing), strict=True):
        if part is not None:
            _prefix_names(part, prefix)
    inputs = {value.name: value for value in _declare_inputs(config, precision)}
    before, between, after = _Stretch(), _Stretch(), _Stretch()
    caches: list[ir.Value] = []
    # Joined weights are copies: those of one layer at a time are held, while they are written.
    read_weights = lru_cache(maxsize=1)(partial(plain_weights, precision=precision))

    def run_layer(stretch: _Stretch, slot: int, layer: Any, hidden: ir.Value) -> ir.Value:
        graph = _copy_layer(parts.layer, layer_name(slot), partial(read_weights, layer))
        pasts = [inputs[past_name(slot, part)] for part in PARTS]
        result, *new = stretch.run(graph, [hidden, *shared, *pasts])
        caches.extend(new)
        return result

    names = (INPUT_IDS, POSITION_IDS, ATTENTION_MASK, LOGIT_INDEX)
    hidden, *once, picked = before.run(opening, [inputs[name] for name in names])
    shared = once[:3]
    for slot, layer in enumerate(model.prelude):
        hidden = run_layer(before, slot, layer, hidden)
    if bridge is not None and config.bridge == "entry":
        (hidden,) = before.run(bridge, [hidden])
    looped = [inputs[past_name(RECURRENT, part)] for part in PARTS]
    outer = [*once, inputs[PAST_POOL_SUM], *looped, picked, inputs[ROW_DEPTH], hidden]
    embedding = opening.initializers[TABLE]
    head = _head(model, precision) or embedding
    carried = [hidden]
    if halting is not None:
        asked = [once[3], inputs[ROW_DEPTH], inputs[HALT_THRESHOLD]]
        score, used, *read = before.run(halting, asked)
        carried += [score, used]
        outer += [*read, head] if config.halter == "confidence" else read
    scalar, axis = _scalar_depth(inputs[DEPTH])
    loop = _make_loop(step, outer, scalar.outputs[0], carried)
    hidden, *scans = loop.outputs
    chosen = {} if halting is None else {DEPTH_USED: scans[1]}
    scans = scans[len(carried) - 1 :]
    turned = [_batch_first(scan, rank) for scan, rank in zip(scans, (5, 5, 4), strict=True)]
    key, value, pool = (node.outputs[0] for node in turned)
    apart, target = _part_heads([key, value], config)
    if bridge is not None and config.bridge == "exit":
        (hidden,) = after.run(bridge, [hidden])
    for slot, layer in enumerate(model.coda, start=config.prelude):
        hidden = run_layer(after, slot, layer, hidden)
    (logits,) = after.run(closing, [hidden, picked, head])

    ends = [new_name(slot, part) for slot in range(config.num_layers) for part in PARTS]
    given = dict(zip(ends, caches, strict=True))
    looped_ends = [node.outputs[0] for node in apart] or [key, value]
    given |= dict(zip(RECURRENT_OUTPUTS, looped_ends, strict=True))
    given |= {**chosen, LOGITS: logits, POOL_SUM: pool}
    outputs = _declare_outputs(config, precision, given)
    between.add([scalar, loop, *turned, *apart], [axis, *target])
    if head is not embedding:
        after.add([], [head])
    result = _join((before, between, after), list(inputs.values()), outputs, parts.opening)
    _forget_traces(result)
    return result, list(parts.passes)


_PREFIXES = (OPENING, BRIDGE, HALTING, STEP, CLOSING)


class _Stretch:
    """What runs before the loop, the loop itself, or what runs after it, in order."""

    def __init__(self) -> None:
        self._graphs: list[ir.Graph] = []

    def run(self, graph: ir.Graph, values: list[ir.Value]) -> list[ir.Value]:
        """Feeds the next part and returns what it makes."""
        for inner, value in zip(graph.inputs, values, strict=True):
            inner.replace_all_uses_with(value)
        self._graphs.append(graph)
        return _take_outputs(graph)

    def add(self, nodes: list[ir.Node], constants: list[ir.Value]) -> None:
        """Puts nodes next, with the constants that they read."""
        self._graphs.append(ir.Graph([], [], nodes=nodes, initializers=constants))

    def move(self, target: ir.Graph) -> None:
        """Moves the nodes and weights of all parts to the end of `target`."""
        for source in self._graphs:
            nodes = list(source)
            source.remove(nodes)
            target.extend(nodes)
            for name, value in list(source.initializers.items()):
                del source.initializers[name]
                target.initializers[name] = value


def _join(
    stretches: Iterable[_Stretch],
    inputs: list[ir.Value],
    outputs: list[ir.Value],
    like: ir.Model,
) -> ir.Model:
    """One model of all stretches, of the versions that a part of it has."""
    opsets = dict(like.graph.opset_imports)
    graph = ir.Graph(inputs, outputs, nodes=[], opset_imports=opsets, name="ouroboros")
    for stretch in stretches:
        stretch.move(graph)
    result = ir.Model(graph, ir_version=like.ir_version)
    result.producer_name = "ouroboros"
    return result


def _head(model: OuroborosForCausalLM, precision: Precision) -> ir.Value | None:
    """The LM head as a weight of its own; None where the embedding serves."""
    if not precision.quantized and model.config.tie_word_embeddings:
        return None
    return _initializer(HEAD, lay_head(model.lm_head.weight.detach(), precision), precision)


def _declare_inputs(config: OuroborosConfig, precision: Precision) -> list[ir.Value]:
    return [
        _declare(ir.Value(name=spec.name), spec) for spec in contract.inputs(config, precision.name)
    ]


def _declare_outputs(
    config: OuroborosConfig, precision: Precision, values: dict[str, ir.Value]
) -> list[ir.Value]:
    specs = contract.outputs(config, precision.name)
    if problem := contract.find_unfed(specs, values):
        raise ExportError(problem, "this is a bug")
    return [_declare(values[spec.name], spec) for spec in specs]


def _declare(value: ir.Value, spec: contract.TensorSpec) -> ir.Value:
    kind = ir.DataType[contract.ELEMENT_TYPES[spec.dtype].onnx]
    value.name, value.type, value.shape = spec.name, ir.TensorType(kind), ir.Shape(spec.shape)
    return value


def _scalar_depth(depth: ir.Value) -> tuple[ir.Node, ir.Value]:
    """Makes the scalar that a Loop takes of the input `[1]`: Triton knows no scalars.

    Returns:
        A Squeeze, and its axes, which are to be registered.
    """
    axis = _constant("depth.axis", [0])
    node = ir.node("Squeeze", [depth, axis], name="depth.scalar")
    (scalar,) = node.outputs
    scalar.name, scalar.type, scalar.shape = "depth.scalar", depth.type, ir.Shape([])
    return node, axis


def _constant(name: str, numbers: list[int]) -> ir.Value:
    tensor = ir.tensor(np.array(numbers, np.int64), name=name)
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape([len(numbers)])
    return ir.Value(name=name, type=kind, shape=shape, const_value=tensor)


def _make_loop(
    body: ir.Graph, outer: list[ir.Value], depth: ir.Value, carried: list[ir.Value]
) -> ir.Node:
    """Turns the traced step into the body of a Loop that runs `depth` times.

    `carried` is h, and with a halter the score and the steps of each row.
    """
    index, *inner_values = body.inputs
    count = len(carried)
    states, captured = inner_values[:count], inner_values[count:]
    for inner, value in zip(captured, outer, strict=True):
        inner.replace_all_uses_with(value)
    condition = ir.Value(name=f"{STEP}.condition", type=ir.TensorType(BOOL), shape=ir.Shape([]))
    true = ir.node(
        "Constant", [], attributes={"value": ir.tensor(np.array(True), name=f"{STEP}.true")}
    )
    true.outputs[0].name = f"{STEP}.go_on"
    true.outputs[0].type, true.outputs[0].shape = ir.TensorType(BOOL), ir.Shape([])
    body.append(true)
    results = _take_outputs(body)
    body.inputs.clear()
    body.inputs.extend([index, condition, *states])
    body.outputs.extend([true.outputs[0], *results])
    body.name = STEP
    loop = ir.node(
        "Loop", [depth, None, *carried], attributes={"body": body}, num_outputs=len(results)
    )
    loop.name = "recurrence"
    names = (("h", "halt_score", DEPTH_USED)[:count], PARTS, (POOL_SUM,))
    for value, name in zip(loop.outputs, (one for part in names for one in part), strict=True):
        value.name = f"loop.{name}"
    return loop


def _batch_first(scan: ir.Value, rank: int) -> ir.Node:
    """Transposes `[depth, batch, ...]`, as a Loop stacks it, to `[batch, depth, ...]`."""
    return ir.node("Transpose", [scan], attributes={"perm": [1, 0, *range(2, rank)]})


def _part_heads(
    caches: list[ir.Value], config: OuroborosConfig
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Turns `[batch, depth, k * kv, ...]` into `[batch, depth * k, kv, ...]`.

    Entry `i * k + j` is then that of step i and of layer j. Nothing is moved.

    Returns:
        A Reshape for each cache, and their target, to be registered; neither where k is 1.
    """
    if config.recurrent_layers == 1:
        return [], []
    target = _constant("loop.entries", [0, -1, config.num_key_value_heads, 0, config.head_dim])
    return [ir.node("Reshape", [cache, target]) for cache in caches], [target]


def _prefix_names(graph: ir.Graph, prefix: str) -> None:
    for name, value in list(graph.initializers.items()):
        del graph.initializers[name]
        value.name = f"{prefix}.{name.removeprefix(LAYER)}"
        graph.initializers[value.name] = value
    for node in graph:
        node.name = f"{prefix}.{node.name}"
        for value in node.outputs:
            value.name = f"{prefix}.{value.name}"
    for value in graph.inputs:
        value.name = f"{prefix}.{value.name}"


def _take_outputs(graph: ir.Graph) -> list[ir.Value]:
    values = list(graph.outputs)
    graph.outputs.clear()
    return values


def _copy_layer(
    template: ir.Model | None, prefix: str, read: Callable[[], dict[str, torch.Tensor]]
) -> ir.Graph:
    """Copies the traced layer and gives it the weights of one kept layer.

    `read` returns them under the template's names; it is called when they are written.
    """
    if template is None:
        raise ExportError("the model keeps layers but none was traced", "this is a bug")
    graph = template.graph.clone()
    for name, value in graph.initializers.items():
        if name.startswith(LAYER):
            read_later(value, partial(_read_tensor, read, name))
    _prefix_names(graph, prefix)
    return graph


def _read_tensor(read: Callable[[], dict[str, torch.Tensor]], name: str) -> ir.TensorProtocol:
    return _tensor(name, read()[name])


def _tensor(name: str, weight: torch.Tensor) -> ir.TensorProtocol:
    weight = weight.contiguous()
    if weight.dtype == torch.bfloat16:  # numpy has no such type of its own
        return ir.tensor(weight.view(torch.int16).numpy().view(ml_dtypes.bfloat16), name=name)
    return ir.tensor(weight.numpy(), name=name)


def _initializer(name: str, weight: torch.Tensor, precision: Precision) -> ir.Value:
    """A weight that is cast and laid out when it is written; integers may take its place before."""
    dtype = precision.compute
    kind, shape = DTYPES[dtype], ir.Shape(list(weight.shape))
    tensor = ir.LazyTensor(lambda: _tensor(name, weight.to(dtype)), kind, shape, name=name)
    return ir.Value(name=name, type=ir.TensorType(kind), shape=shape, const_value=tensor)


def _forget_traces(model: ir.Model) -> None:
    """Drops the tracer's notes and inner shapes, whose symbols differ from part to part."""
    declared = {*model.graph.inputs, *model.graph.outputs}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        # Stack traces of the machine that exported: not the reader's business.
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            if value not in declared:
                value.shape = None
    for node in model.graph:
        if node.op_type == "Loop":
            body = node.attributes["body"].as_graph()
            for value in (*body.inputs[2:], *body.outputs[1:]):
                value.shape = None
