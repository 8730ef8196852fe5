"""Traces the straight-line parts, each to an onnx-ir graph with open inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.utils._pytree import tree_map

from export.errors import ExportError
from export.graph.exporter import run_exporter
from export.graph.halting import HaltingStep, HaltOpening
from export.graph.parts import Closing, Opening, Plain, Step, TracedBridge
from export.graph.passes.reshapes import constant_reshapes
from export.graph.passes.result import PassResult
from export.layout import head_turned
from export.options import OPSET
from export.precision import Precision
from ouroboros.model.modeling import OuroborosForCausalLM

_OTHER_TORCH = "try another release of torch; where that fails too, this is a bug"
LAYER = "layer."  # what the names of a kept layer's weights begin with

# Example sizes, all different and none 0 or 1, which the tracer would take for constants.
_BATCH, _NEW, _PAST, _PICKED, _SLOTS, _ASKED = 2, 5, 11, 3, 7, 13


@dataclass(frozen=True)
class Parts:
    """The traced parts, each a model with open inputs in the order of its `forward`.

    Attributes:
        opening: embedding and what is computed once a call.
        layer: one kept layer without its weights: `plain_weights` has each layer's own.
        bridge: the linear map beside the loop; None where the model has none.
        halting: what a halter needs once a call; None where the model has none.
        step: one recurrence.
        closing: final norm and LM head.
        passes: what was changed in them.
    """

    opening: ir.Model
    layer: ir.Model | None
    bridge: ir.Model | None
    halting: ir.Model | None
    step: ir.Model
    closing: ir.Model
    passes: tuple[PassResult, ...]


def trace_parts(model: OuroborosForCausalLM, precision: Precision, max_depth: int) -> Parts:
    """Traces every part; step tables are cut at `max_depth`.

    Raises:
        ExportError: the model can't be traced.
    """
    config = model.config
    kv, size, d = config.num_key_value_heads, config.head_dim, config.hidden_size
    grouped = config.num_attention_heads // kv * _NEW
    ids = _Example((_BATCH, _NEW), (0, 1), torch.long)
    mask = _Example((_BATCH, _PAST + _NEW), (0, 1), torch.long)
    h = _Example((_BATCH, _NEW, d), (0, 1))
    trig = _Example((_BATCH, 1, _NEW, size), (0, 2))
    shared = (_Example((_BATCH, 1, grouped, _PAST + _NEW), (0, 2, 3)), trig, trig)
    column = _Example((_BATCH, _NEW, 1), (0, 1))
    has_past = _Example((_BATCH, 1, 1), (0,), torch.bool)
    pool = (column, column, has_past, _Example((_BATCH, _SLOTS, d), (0, 1)))
    compute = precision.compute
    cache = _Example((_BATCH, kv, _PAST, size), (0, 2), compute)
    entries = _SLOTS * config.recurrent_layers
    steps = _Example((_BATCH, entries, kv, _PAST, size), (0, 1, 3), compute)
    index = _Example((_BATCH, _PICKED), (0, 1), torch.long)
    picked = _Example((_BATCH, _PICKED, d), (0, 1), torch.long)
    rows = _Example((_BATCH,), (0,), torch.long)
    step = _Example((), (), torch.long)
    head_shape = (config.vocab_size, d)[:: -1 if head_turned(precision) else 1]
    head = _Example(head_shape, (), compute)
    # First, since it refuses what can't be exported at all.
    opening = _trace(Opening(model, precision), (ids, ids, mask, index))
    layer = None
    if kept := [*model.prelude, *model.coda]:
        layer = _trace(_template(kept[0], precision), (h, shared, (cache, cache)))
        _forget_weights(layer)
    bridge = None
    if model.bridge is not None:
        bridge = _trace(TracedBridge(model.bridge, precision), (h,))
    captured = (shared, pool, (steps, steps), picked, rows, h)
    halting = None
    if config.halting:
        score, asked = _Example((_BATCH,), (0,)), _Example((_ASKED,), (0,), torch.long)
        ends = [
            _Example((_BATCH, 1, d), (0,), torch.long),
            _Example((_BATCH, 1, _NEW), (0, 2)),
            _Example((1,), ()),
        ]
        if config.halter == "confidence":
            ends += [asked, head]
        halting = _trace(HaltOpening(model), (column, rows, _Example((1,), ())))
        inputs = (step, h, (score, rows), *captured, tuple(ends))
        body = _trace(HaltingStep(model, precision, max_depth), inputs)
    else:
        body = _trace(Step(model, precision, max_depth), (step, h, *captured))
    closing = _trace(Closing(model, precision), (h, picked, head))
    parts = [part for part in (opening, layer, bridge, halting, body, closing) if part is not None]
    # Before stitching: here the tracer's symbols of every size are known.
    passes = tuple(constant_reshapes(part) for part in parts)
    return Parts(opening, layer, bridge, halting, body, closing, passes)


def plain_weights(layer: nn.Module, precision: Precision) -> dict[str, torch.Tensor]:
    """Returns the weights of a kept layer under the names the traced layer gives them.

    Matrices to be quantised are without content: their integers are stored instead.
    """
    if precision.quantized:
        layer = _without_matrices(layer)
    return {name: value.detach() for name, value in Plain(layer, precision).named_parameters()}


def _without_matrices(layer: nn.Module) -> nn.Module:
    """Returns a layer that shares norms and biases with this one."""
    kept: dict[int, Any] = {id(buffer): buffer for buffer in layer.buffers()}
    for value in layer.parameters():
        whole = value.ndim < 2
        kept[id(value)] = value if whole else nn.Parameter(value.to("meta"), requires_grad=False)
    return copy.deepcopy(layer, kept)


def _forget_weights(model: ir.Model) -> None:
    """Keeps type and shape of a traced layer's random weights, not their content."""
    for name, value in model.graph.initializers.items():
        if name.startswith(LAYER):
            read_later(value, partial(_refuse, name))


def read_later(value: ir.Value, read: Callable[[], ir.TensorProtocol]) -> None:
    """Gives an initializer content that is read when it is written; type and shape stay."""
    if (old := value.const_value) is not None:
        value.const_value = ir.LazyTensor(
            read, old.dtype, ir.Shape(old.shape.numpy()), name=str(value.name)
        )


def _refuse(name: str) -> ir.TensorProtocol:
    raise ExportError(f"the traced layer's {name} is no weight of the model", "this is a bug")


def _template(layer: nn.Module, precision: Precision) -> Plain:
    """Returns a layer of random weights: the exporter merges weights that are equal by chance."""
    plain = Plain(layer, precision)
    generator = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        random = torch.rand(parameter.shape, generator=generator)
        parameter.data = random.to(parameter.dtype)
    return plain


@dataclass(frozen=True)
class _Example:
    """An example input: its shape, which axes vary from call to call, and its type."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def tensor(self) -> torch.Tensor:
        # The tracer looks at shapes only: of an LM head's gigabyte no page is touched.
        return torch.empty(self.shape, dtype=self.dtype)

    def dynamic(self) -> dict[int, Any]:
        return dict.fromkeys(self.axes, torch.export.Dim.AUTO)


def _trace(part: nn.Module, examples: tuple[Any, ...]) -> ir.Model:
    inputs = tree_map(lambda example: example.tensor(), examples)
    shapes = tree_map(lambda example: example.dynamic(), examples)
    try:
        return run_exporter(part, inputs, shapes, OPSET)
    except Exception as error:  # the tracer raises many kinds; the first line names the operator
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"can't trace {type(part).__name__.lower()}: {reason}", _OTHER_TORCH
        ) from error
