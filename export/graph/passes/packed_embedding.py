"""An embedding looked up in packed integers, so that a tied one shares the LM head's bytes.

The head's matrix is `[hidden, vocabulary]`, packed along the vocabulary. The embedding reads the
same bytes as int32 words, several entries a word, and takes a token's column apart with Div and
Mod: ONNX Runtime has no Gather of 4-bit integers and TensorRT none of 8-bit ones.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from export.errors import ExportError
from export.graph.passes.result import PassResult
from export.quantize.weights import Array, QuantizedWeight, pack
from runtime.bundle.contract import LOGITS

WORD = 32


def pack_embedding(
    model: ir.Model,
    table: str,
    weight: QuantizedWeight,
    factor: Array | None = None,
    half_scales: bool = True,
) -> PassResult:
    """Replaces the Gather of a float embedding by a lookup in packed integers.

    Args:
        model: the stitched graph.
        table: name of the float embedding `[vocabulary, hidden]`.
        weight: its integers, `[hidden, vocabulary padded to whole words]`.
        factor: float32 `[hidden]`, what an entry is multiplied by; None leaves it.
        half_scales: as of `quantize_weights`.

    Raises:
        ExportError: the graph does not look `table` up exactly once.
    """
    graph = model.graph
    old = graph.initializers.get(table)
    uses = [] if old is None else list(old.uses())
    if old is None or len(uses) != 1 or uses[0].node.op_type != "Gather":
        raise ExportError(f"the graph does not look {table} up exactly once", "this is a bug")
    gather = uses[0].node
    ids = gather.inputs[1]
    if ids is None:
        raise ExportError(f"the lookup of {table} has no indices", "this is a bug")
    lookup = _Lookup(table, weight, half_scales and weight.half_scales)
    result = lookup.column(ids, factor)
    graph.insert_before(gather, lookup.tape.nodes)
    for value in lookup.tape.initializers:
        graph.register_initializer(value)
    gather.outputs[0].replace_all_uses_with(result)
    graph.remove(gather, safe=True)
    del graph.initializers[table]
    return PassResult("pack_embedding", 1, "the embedding is looked up in packed integers")


class _Lookup:
    """Builds the nodes that take the columns of some tokens out of packed integers."""

    def __init__(self, name: str, weight: QuantizedWeight, narrow: bool) -> None:
        self.name, self.weight, self.tape = name, weight, Tape()
        self.scales = weight.scales.astype(np.float16) if narrow else weight.scales
        self.per_word = WORD // weight.bits

    def column(self, ids: ir.Value, factor: Array | None) -> ir.Value:
        """float32 `[B, S, hidden]` of int64 ids `[B, S]`, times `factor` `[hidden]`."""
        weight, block = self.weight, self.weight.block
        rows, groups = weight.values.shape[0], weight.scales.shape[0]
        flat = self._op("Reshape", ids, self._int("flat", [-1]))
        word = self._op("Div", flat, self._int("per_word", self.per_word))
        place = self._op("Mod", flat, self._int("per_word_again", self.per_word))
        powers = [1 << (weight.bits * place) for place in range(self.per_word)]
        power = self._op("Gather", self._int("powers", powers), place)
        values = self._unpack("words", weight.values, word, power)
        blocks = self._op("Reshape", values, self._int("blocks", [groups, block, -1]))
        if weight.zeros is not None:
            zeros = self._unpack("zero_words", weight.zeros, word, power)
            blocks = self._op("Sub", blocks, self._op("Unsqueeze", zeros, self._int("axis_z", [1])))
        scales = self._op("Gather", self._constant("scales", self.scales), flat, axis=1)
        if self.scales.dtype == np.float16:
            scales = self._op("Cast", scales, to=ir.DataType.FLOAT.value)
        blocks = self._op("Mul", blocks, self._op("Unsqueeze", scales, self._int("axis_s", [1])))
        matrix = self._op("Reshape", blocks, self._int("matrix", [rows, -1]))
        turned = self._op("Transpose", matrix, perm=[1, 0])
        shape = self._op("Concat", self._op("Shape", ids), self._int("hidden", [rows]), axis=0)
        entries = self._op("Reshape", turned, shape)
        return entries if factor is None else self._op("Mul", entries, self._constant("f", factor))

    def _unpack(self, name: str, values: Array, word: ir.Value, power: ir.Value) -> ir.Value:
        """The integers of the chosen columns as float32 `[rows, tokens]`."""
        bits = self.weight.bits
        words = pack(values, bits).reshape(len(values), -1).view("<i4")
        chosen = self._op("Gather", self._constant(name, words), word, axis=1)
        wide = self._op("Cast", chosen, to=ir.DataType.INT64.value)
        # Mod takes the divisor's sign: a negative word becomes the unsigned one of its bits.
        unsigned = self._op("Mod", wide, self._int(f"{name}_range", 1 << WORD))
        shifted = self._op("Div", unsigned, power)
        size = 1 << bits
        if self.weight.zeros is None:
            # Two's complement: the upper half of the range is negative.
            shifted = self._op("Add", shifted, self._int(f"{name}_half", size // 2))
        low = self._op("Mod", shifted, self._int(f"{name}_size", size))
        if self.weight.zeros is None:
            low = self._op("Sub", low, self._int(f"{name}_half_again", size // 2))
        return self._op("Cast", low, to=ir.DataType.FLOAT.value)

    def _op(self, kind: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        number = len(self.tape.nodes)
        name = f"{self.name}_{kind.lower()}_{number}"
        value = self.tape.op(kind, inputs, attributes=attributes, name=name)
        value.name = name
        return value

    def _int(self, name: str, value: int | list[int]) -> ir.Value:
        return self._constant(name, np.array(value, np.int64))

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        full = f"{self.name}_{name}"
        return self.tape.initializer(ir.tensor(np.ascontiguousarray(array), name=full), name=full)


def trim_logits(model: ir.Model, vocab_size: int) -> PassResult:
    """Cuts logits over a vocabulary padded to whole words back to the model's own.

    Args:
        model: the graph, its LM head replaced by a padded one.
        vocab_size: tokens that there are.
    """
    graph = model.graph
    (logits,) = (value for value in graph.outputs if value.name == LOGITS)
    tape = Tape()
    parts = [
        tape.initializer(ir.tensor(np.array([number], np.int64), name=f"logits_{name}"))
        for name, number in (("start", 0), ("end", vocab_size), ("axis", 2))
    ]
    cut = tape.op("Slice", [logits, *parts], name="logits_cut")
    cut.type, cut.shape = logits.type, logits.shape
    graph.outputs[graph.outputs.index(logits)] = cut
    logits.name, logits.shape, cut.name = f"{LOGITS}_padded", None, LOGITS
    for value in tape.initializers:
        graph.register_initializer(value)
    graph.extend(tape.nodes)
    return PassResult("trim_logits", 1, "the padded vocabulary is cut off the logits")
