"""PyTorch model to finished graph, at any precision."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from export.graph import build_graph
from export.passes.packed_embedding import WORD, pack_embedding, trim_logits
from export.passes.weight_only import quantize_weights, store_half
from export.precision import Precision
from export.quantized import QuantizedWeight
from export.weight_names import HEAD, STORED_HALF, TABLE, joined_weights
from ouroboros.modeling import OuroborosForCausalLM


def compile_graph(
    model: OuroborosForCausalLM,
    precision: Precision,
    max_depth: int,
    weights: Mapping[str, QuantizedWeight] | None = None,
) -> ir.Model:
    """Returns the whole model as one ONNX graph.

    Args:
        model: float32, eval mode; where quantised, holding the dequantised weights.
        precision: of the graph.
        max_depth: most steps the graph will be run at.
        weights: integers by the parameter's name, from `quantize_model`; for int8 and int4.

    Raises:
        ExportError: a part can't be traced.
    """
    graph = build_graph(model, max_depth, precision)
    if precision.bits is None or weights is None:
        return graph
    per_word = WORD // precision.bits
    head = weights["lm_head.weight"].padded(per_word)
    quantize_weights(graph, dict(joined_weights(model, weights)) | {HEAD: head})
    pack_embedding(graph, TABLE, weights["embed_tokens.weight"].padded(per_word))
    store_half(graph, STORED_HALF)
    if model.config.vocab_size % per_word:
        trim_logits(graph, model.config.vocab_size)
    return graph
