"""The graph's tensors: the one place that spells their names, order, element types and dimensions.

Export declares them, the manifest lists them, engines feed and read them, checks compare them: all
ask here. So a tensor that is added, renamed or reshaped is followed everywhere, or refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

INPUT_IDS = "input_ids"
POSITION_IDS = "position_ids"
ATTENTION_MASK = "attention_mask"
DEPTH = "depth"
ROW_DEPTH = "row_depth"
LOGIT_INDEX = "logit_index"
PAST_POOL_SUM = "past_pool_sum"
HALT_THRESHOLD = "halt_threshold"
DEPTH_USED = "depth_used"
LOGITS = "logits"
POOL_SUM = "pool_sum"

# How an engine feeds its graph, which plans are built for and cases are recorded around.
BUCKET = 64  # slots that a cache grows by, at least
PREFILL_CHUNK = 512  # tokens of a prompt in one call
SCORE_CHUNK = 128  # where every logit is asked for: 25 MB a row at 49,152 tokens of vocabulary

PAST_PREFIX, NEW_PREFIX = "past_key_values.", "new_key_values."
RECURRENT = "recurrent"  # in the place of a layer's number, the cache of the looped layers
PARTS = ("key", "value")

# Dimensions that differ from call to call.
BATCH = "batch"
NEW = "sequence"
PAST = "past_sequence"
TOTAL = f"{PAST} + {NEW}"
PICKED = "logits"
SLOTS = "slots"


@dataclasses.dataclass(frozen=True)
class ElementType:
    """An element type by its names.

    Attributes:
        name: in manifests, as numpy and PyTorch call it.
        item_bytes: of one element.
        onnx: in TensorProto.DataType.
        onnx_number: there.
        ort: as ONNX Runtime calls a tensor of it.
        triton: in a Triton configuration.
    """

    name: str
    item_bytes: int
    onnx: str
    onnx_number: int
    ort: str
    triton: str

    @property
    def floating(self) -> bool:
        """Whether its elements are floating-point numbers."""
        return "float" in self.name


ELEMENT_TYPES = {
    one.name: one
    for one in (
        ElementType("float32", 4, "FLOAT", 1, "tensor(float)", "TYPE_FP32"),
        ElementType("float16", 2, "FLOAT16", 10, "tensor(float16)", "TYPE_FP16"),
        ElementType("bfloat16", 2, "BFLOAT16", 16, "tensor(bfloat16)", "TYPE_BF16"),
        ElementType("int64", 8, "INT64", 7, "tensor(int64)", "TYPE_INT64"),
    )
}
"""Every type that a tensor of the graph may have."""


@dataclasses.dataclass(frozen=True)
class PrecisionSpec:
    """What a bundle computes in and stores.

    Attributes:
        name: as the user gives it and the manifest says it.
        compute: element type of the matrix products and of the cache.
        bits: of the quantised weights; None where weights are floats of `compute`.
    """

    name: str
    compute: str
    bits: int | None = None


PRECISIONS = {
    one.name: one
    for one in (
        PrecisionSpec("fp32", "float32"),
        PrecisionSpec("fp16", "float16"),
        PrecisionSpec("bf16", "bfloat16"),
        PrecisionSpec("int8", "float32", 8),
        PrecisionSpec("int4", "float32", 4),
    )
}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of the graph; a dimension is a number or a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Dimensions(Protocol):
    """The numbers of a model that its tensors' dimensions are made of."""

    @property
    def hidden_size(self) -> int:
        """Of the hidden state."""

    @property
    def num_layers(self) -> int:
        """Kept layers: prelude and coda."""

    @property
    def recurrent_layers(self) -> int:
        """Layers that one step of the loop runs."""

    @property
    def halting(self) -> bool:
        """Whether the graph can choose its depth."""

    @property
    def num_key_value_heads(self) -> int:
        """Heads of keys and values."""

    @property
    def head_dim(self) -> int:
        """Size of a head."""

    @property
    def vocab_size(self) -> int:
        """Tokens there are."""


class ModelNumber(str):
    """A dimension that is one of the model's numbers, by its name in `Dimensions`."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of any bundle.

    Attributes:
        name: of the input or output.
        dtype: a name of ELEMENT_TYPES, or CACHE for the type that the bundle's precision computes
            in.
        shape: numbers, names of dimensions that differ from call to call, and the model's numbers.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def resolve(self, model: Dimensions, precision: str) -> TensorSpec:
        """The tensor of one bundle."""
        dtype = PRECISIONS[precision].compute if self.dtype == CACHE else self.dtype
        shape = (getattr(model, s) if isinstance(s, ModelNumber) else s for s in self.shape)
        return TensorSpec(self.name, dtype, tuple(shape))


CACHE = "cache"
_HIDDEN, _VOCABULARY = ModelNumber("hidden_size"), ModelNumber("vocab_size")
_HEADS, _HEAD = ModelNumber("num_key_value_heads"), ModelNumber("head_dim")

DEPTH_INPUT = Tensor(DEPTH, "int64", (1,))
PLAIN_INPUTS = (
    Tensor(INPUT_IDS, "int64", (BATCH, NEW)),
    Tensor(POSITION_IDS, "int64", (BATCH, NEW)),
    Tensor(ATTENTION_MASK, "int64", (BATCH, TOTAL)),
    DEPTH_INPUT,
    Tensor(ROW_DEPTH, "int64", (BATCH,)),
    Tensor(LOGIT_INDEX, "int64", (BATCH, PICKED)),
)
HALT_INPUT = Tensor(HALT_THRESHOLD, "float32", (1,))
HALT_OUTPUT = Tensor(DEPTH_USED, "int64", (BATCH,))
POOL_INPUT = Tensor(PAST_POOL_SUM, "float32", (BATCH, SLOTS, _HIDDEN))
LOGITS_OUTPUT = Tensor(LOGITS, "float32", (BATCH, PICKED, _VOCABULARY))
POOL_OUTPUT = Tensor(POOL_SUM, "float32", (BATCH, DEPTH, PICKED, _HIDDEN))


def cache_ends(num_layers: int) -> list[str]:
    """How names of cache tensors end, in order: key and value of every kept layer, of the loop."""
    layers = [*map(str, range(num_layers)), RECURRENT]
    return [f"{layer}.{part}" for layer in layers for part in PARTS]


def past_name(layer: int | str, part: str) -> str:
    """The input that holds the past keys or values of a kept layer, or of RECURRENT."""
    return f"{PAST_PREFIX}{layer}.{part}"


def new_name(layer: int | str, part: str) -> str:
    """The output that holds the new keys or values of a kept layer, or of RECURRENT."""
    return f"{NEW_PREFIX}{layer}.{part}"


RECURRENT_OUTPUTS = tuple(new_name(RECURRENT, part) for part in PARTS)
COMPARED_OUTPUTS = (LOGITS, POOL_SUM, *RECURRENT_OUTPUTS)
"""Outputs that a recorded case holds: the kept layers' keys and values show in the logits.

Beside them DEPTH_USED, where the model has it.
"""
ROWLESS = (DEPTH, HALT_THRESHOLD)
"""Inputs of one number for all rows of a call."""


def input_tensors(model: Dimensions) -> Iterator[Tensor]:
    """Every input of a model's graph, in order."""
    yield from PLAIN_INPUTS
    yield from _cache(PAST_PREFIX, model, PAST, SLOTS)
    yield POOL_INPUT
    if model.halting:
        yield HALT_INPUT


def output_tensors(model: Dimensions) -> Iterator[Tensor]:
    """Every output of a model's graph, in order."""
    yield LOGITS_OUTPUT
    yield from _cache(NEW_PREFIX, model, NEW, DEPTH)
    yield POOL_OUTPUT
    if model.halting:
        yield HALT_OUTPUT


def _cache(prefix: str, model: Dimensions, tokens: str, slots: str) -> Iterator[Tensor]:
    """Keys and values `[B, kv, T, hd]` of a kept layer, `[B, D * k, kv, T, hd]` of the loop.

    Entry `i * k + j` of the loop's is that of step i and of layer j of its k.
    """
    kept, looped = _cache_shapes(model, tokens, slots)
    for end in cache_ends(model.num_layers):
        yield Tensor(f"{prefix}{end}", CACHE, looped if end.startswith(RECURRENT) else kept)


def _cache_shapes(model: Dimensions, tokens: str, slots: str) -> list[tuple[int | str, ...]]:
    """Of a kept layer's, and of the loop's."""
    count = model.recurrent_layers
    stacked = slots if count == 1 else f"{count} * {slots}"
    return [(BATCH, *looped, _HEADS, tokens, _HEAD) for looped in ((), (stacked,))]


def past_specs(model: Dimensions, precision: str) -> tuple[TensorSpec, TensorSpec]:
    """What holds the keys, and like them the values, of a kept layer and of the loop.

    A kept layer's is the first one's, even of a model that keeps none; arguments as for `inputs`.
    """
    kept, looped = _cache_shapes(model, PAST, SLOTS)
    first = Tensor(past_name(0, PARTS[0]), CACHE, kept)
    loop = Tensor(past_name(RECURRENT, PARTS[0]), CACHE, looped)
    return first.resolve(model, precision), loop.resolve(model, precision)


def inputs(model: Dimensions, precision: str) -> tuple[TensorSpec, ...]:
    """The inputs of a bundle's graph, in order.

    Args:
        model: its dimensions.
        precision: a name of PRECISIONS.
    """
    return tuple(one.resolve(model, precision) for one in input_tensors(model))


def outputs(model: Dimensions, precision: str) -> tuple[TensorSpec, ...]:
    """The outputs of a bundle's graph, in order; arguments as for `inputs`."""
    return tuple(one.resolve(model, precision) for one in output_tensors(model))


def parse_size(size: str) -> list[tuple[int, str]]:
    """A dimension's name as terms of a sum, each a factor and the name of what it counts.

    `slots` is `[(1, "slots")]`, `4 * slots` is `[(4, "slots")]`, `past_sequence + sequence`
    `[(1, "past_sequence"), (1, "sequence")]`.

    Args:
        size: as a `TensorSpec` has it.
    """
    terms = []
    for term in size.split("+"):
        factor, times, name = term.partition("*")
        terms.append((int(factor), name.strip()) if times else (1, term.strip()))
    return terms


def resolve_size(size: int | str, sizes: Mapping[str, int]) -> int:
    """The number that a dimension is in one call.

    Args:
        size: as a `TensorSpec` has it.
        sizes: what the names that differ from call to call stand for.

    Raises:
        KeyError: a name is not among them.
    """
    if isinstance(size, int):
        return size
    return sum(factor * sizes[name] for factor, name in parse_size(size))


def resolve_shape(shape: Iterable[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers that a tensor's dimensions are in one call; see `resolve_size`."""
    return tuple(resolve_size(size, sizes) for size in shape)


def find_unfed(tensors: Iterable[TensorSpec], given: Mapping[str, object]) -> str | None:
    """The first tensor that nothing is given for, or the first that is given and is none.

    Returns:
        A clause that names it; None where all are given and no other.
    """
    names = [tensor.name for tensor in tensors]
    for name in names:
        if name not in given:
            return f"the graph has {name}, which is not known here"
    unknown = next((name for name in given if name not in names), None)
    return None if unknown is None else f"the graph has no {unknown}"
