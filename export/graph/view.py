"""A text tree of an exported graph, for people: prelude, the loop and its parts, coda.

The nodes of the loop's body carry no names of the modules they came from, but they read weights
that do: a node belongs to the last section whose weights were read before it, in the order the
body computes. A norm's first node, Pow, begins the section of what it feeds. The weights of norms
say nothing: the exporter merges them where they are equal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from export.errors import ExportError
from export.layout import BRIDGE, CLOSING, GATE_WEIGHT, MODULATE, OPENING, STEP
from runtime.bundle.contract import PAST_POOL_SUM, PAST_PREFIX, RECURRENT

_SHOWN_OPS = 6
_SHOWN_WEIGHTS = 5
_SHOWN_SHARE = 0.01
# Smaller constants (axes, epsilons, reshape targets) are no weights.
_WEIGHT_BYTES = 256

# First match wins; what a body's weight is called says which part of a step it serves.
_SECTIONS = (
    (PAST_POOL_SUM, "pool"),
    (f"{PAST_PREFIX}{RECURRENT}", "attention"),
    (f"{MODULATE}.", "controller"),
    ("qkv", "attention"),
    ("qk_norm", "attention"),
    ("out.", "attention"),
    ("gate_up", "mlp"),
    ("down", "mlp"),
    (f"{STEP}.step_norm", "norm"),
    (GATE_WEIGHT, "gate"),
    (f"{STEP}.gate_bias", "gate"),
)
_LOOPED = re.compile(rf"{STEP}\.layers\.\d+\.")  # what precedes the names above in looped layers
_ORDER = ("pool", "controller", "attention", "mlp", "norm", "gate")


@dataclass
class Section:
    """A part of the graph: its nodes and the weights they read, each weight once."""

    name: str
    nodes: list[ir.Node] = field(default_factory=list)
    weights: dict[str, ir.Value] = field(default_factory=dict)


def describe_graph(path: str | Path) -> list[str]:
    """Describes an exported graph as an indented tree of at most 60 lines.

    Args:
        path: the .onnx file, with its data file beside it; weights are not read.

    Returns:
        One line a part: its operators, most frequent first, then its weights with their type,
        shape and size.

    Raises:
        ExportError: the file can't be read or is not one that `ouro export` wrote.
    """
    path = Path(path)
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's and onnx's errors share no base class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ExportError(
            f"{path} can't be read as ONNX: {reason}", "give the model.onnx of a bundle"
        ) from error
    graph = model.graph
    loops = [node for node in graph if node.op_type == "Loop"]
    if len(loops) != 1:
        raise ExportError(
            f"{path} holds {len(loops)} Loop nodes, not the 1 that `ouro export` writes",
            "give the model.onnx of a bundle",
        )
    (loop,) = loops
    body = loop.attributes["body"].as_graph()
    nodes = list(graph)
    place = nodes.index(loop)
    opset = graph.opset_imports.get("", 0)
    total = sum(1 for _ in ir.traversal.RecursiveGraphIterator(graph))
    weights = [*_weights_of(graph), *_weights_of(body)]
    head = f"{path.name}: opset {opset}, IR {model.ir_version}, {total} nodes"
    lines = [f"{head}, {_size(weights)} of weights"]
    lines += _describe_tensors("inputs", graph.inputs)
    before, after = nodes[:place], nodes[place + 1 :]
    lines += _describe_side("prelude", before)
    lines += _describe_loop(loop, body)
    lines += _describe_side("coda", after)
    lines += _describe_tensors("outputs", graph.outputs)
    return lines


def _describe_tensors(title: str, values: Sequence[ir.Value]) -> list[str]:
    """Inputs or outputs, the caches of the layers as one line."""
    lines = [f"├─ {title}"]
    layered = [value for value in values if _layer_of(str(value.name)) is not None]
    for value in values:
        if value not in layered:
            lines.append(f"│    {value.name}  {_type(value)} {_shape(value)}")
        elif value is layered[0]:
            ends = _layer_of(str(value.name)), _layer_of(str(layered[-1].name))
            name = str(value.name).split(".")[0]
            span = f"{name}.{ends[0]}..{ends[1]}.key|value"
            lines.append(f"│    {span}  {_type(value)} {_shape(value)}")
    return lines


def _layer_of(name: str) -> int | None:
    """The number in `layers.3.x` or in the name of a cache, None where there is none."""
    parts = name.split(".")
    return int(parts[1]) if len(parts) > 2 and parts[1].isdecimal() else None


def _describe_side(title: str, nodes: list[ir.Node]) -> list[str]:
    """A side of the loop: its layers, which are alike, as one section; the rest as another."""
    sides: dict[str, Section] = {}
    numbers = []
    for node in nodes:
        number = _layer_of(str(node.name)) if str(node.name).startswith("layers.") else None
        if number is not None and number not in numbers:
            numbers.append(number)
        prefix = str(node.name).split(".")[0]
        name = "layers" if number is not None else prefix if prefix in _ENDS else "around the loop"
        _add(sides.setdefault(name, Section(name)), node)
    lines = [f"├─ {title}: {len(numbers)} layers, {len(nodes)} nodes"]
    for section in sides.values():
        label = _ENDS.get(section.name, section.name)
        if section.name == "layers":
            label = f"layers {numbers[0]}..{numbers[-1]}"
        lines += _describe(section, label, copies=len(numbers) if section.name == "layers" else 1)
    return lines


_ENDS = {
    OPENING: "opening (embedding, mask, rotary, pooled count)",
    BRIDGE: "bridge (h + T h + t)",
    CLOSING: "closing (final norm, LM head)",
}


def _describe_loop(loop: ir.Node, body: ir.Graph) -> list[str]:
    trips = loop.inputs[0]
    size = _size(_weights_of(body))
    made = trips.producer() if trips is not None else None
    given = made.inputs[0] if made is not None else trips  # the input, or what makes it a scalar
    times = given.name if given is not None else "?"
    lines = [f"├─ loop: {times} times, {len(body)} nodes a step, {size} of weights"]
    for section in split_body(body):
        lines += _describe(section, section.name)
    return lines


def split_body(body: ir.Graph) -> list[Section]:
    """Cuts a loop's body into pool, controller, attention, mlp, norm and gate.

    Attention and MLP are those of all looped layers.

    Args:
        body: nodes in the order they compute.

    Returns:
        The sections that hold nodes, in the order of a step; every node is in one.
    """
    nodes = list(body)
    named = [_section_of(node) for node in nodes]
    sections: dict[str, Section] = {}
    current = "pool"
    for place, node in enumerate(nodes):
        if node.op_type == "Pow":
            current = next((name for name in named[place:] if name is not None), current)
        current = named[place] or current
        _add(sections.setdefault(current, Section(current)), node)
    return sorted(sections.values(), key=lambda section: _ORDER.index(section.name))


def _section_of(node: ir.Node) -> str | None:
    names = [_LOOPED.sub("", str(value.name)) for value in node.inputs if value is not None]
    return next((part for start, part in _SECTIONS for n in names if n.startswith(start)), None)


def _add(section: Section, node: ir.Node) -> None:
    section.nodes.append(node)
    for value in node.inputs:
        if value is not None and _is_weight(value):
            section.weights[str(value.name)] = value


def _describe(section: Section, label: str, copies: int = 1) -> list[str]:
    """A section's line, and one a module whose weights are more than a hundredth of it."""
    counts = Counter(node.op_type for node in section.nodes)
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(_SHOWN_OPS))
    left = len(counts) - _SHOWN_OPS
    more = f", {left} more kinds" if left > 0 else ""
    weights = list(section.weights.values())
    holds = f", {_size(weights)}" if weights else ""
    lines = [f"│  ├─ {label}: {len(section.nodes)} nodes{holds}: {shown}{more}"]
    if copies > 1:
        # Layers are alike: the first one's weights stand for all.
        first = str(weights[0].name).split(".")[1]
        weights = [value for value in weights if str(value.name).split(".")[1] == first]
    modules: dict[str, list[ir.Value]] = {}
    for value in weights:
        modules.setdefault(_module_of(str(value.name)), []).append(value)
    ranked = sorted(modules.items(), key=lambda module: -sum(map(_bytes, module[1])))
    least = sum(map(_bytes, weights)) * _SHOWN_SHARE
    for name, values in ranked[:_SHOWN_WEIGHTS]:
        if sum(map(_bytes, values)) >= least:
            largest = max(values, key=_bytes)
            others = f" and {len(values) - 1} more" if len(values) > 1 else ""
            times = f" × {copies}" if copies > 1 else ""
            what = f"{_type(largest)} {_shape(largest)}{others}"
            lines.append(f"│  │    {name}  {what}, {_size(values)}{times}")
    return lines


def _module_of(weight: str) -> str:
    parts = weight.removeprefix(f"{STEP}.layers.").split(".")
    inner = parts[2:] if parts[0] == "layers" else parts[1:]
    # The Controller's weights lie in a module of their own, one level deeper.
    return inner[1] if inner[0] == "modulate" and len(inner) > 1 else inner[0]


def _weights_of(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.initializers.values() if _is_weight(value)]


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None and _bytes(value) >= _WEIGHT_BYTES


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.nbytes)


def _size(values: Iterable[ir.Value]) -> str:
    total = sum(_bytes(value) for value in values)
    return f"{total / 1e6:,.1f} MB" if total >= 1e5 else f"{total / 1e3:,.1f} kB"


def _type(value: ir.Value) -> str:
    return value.dtype.name.lower() if value.dtype is not None else "?"


def _shape(value: ir.Value) -> str:
    if value.shape is None:
        return "[?]"
    return f"[{', '.join(str(size) for size in value.shape)}]"
