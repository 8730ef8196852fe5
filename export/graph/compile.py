"""PyTorch model to finished graph, at any precision."""

from __future__ import annotations

from functools import partial
from itertools import chain

import onnx_ir as ir

from export.graph.passes import run_passes
from export.graph.passes.duplicates import share_constants, share_nodes
from export.graph.passes.folding import fold_constants
from export.graph.passes.opset import set_opset
from export.graph.passes.packed_embedding import WORD, pack_embedding, trim_logits
from export.graph.passes.result import Pass, PassResult
from export.graph.passes.weight_only import quantize_weights, store_half
from export.graph.stitch import build_graph
from export.graph.weight_names import joined_weights
from export.layout import HEAD, TABLE, stored_half
from export.options import OPSET
from export.precision import Precision
from export.quantize.weights import QuantizedModel
from ouroboros.model.modeling import OuroborosForCausalLM


def compile_graph(
    model: OuroborosForCausalLM,
    precision: Precision,
    max_depth: int,
    quantized: QuantizedModel | None = None,
    opset: int = OPSET,
    half_scales: bool = True,
) -> tuple[ir.Model, list[PassResult]]:
    """Returns the whole model as one ONNX graph, and what each pass changed in it.

    Args:
        model: float32, eval mode; where quantised, holding the dequantised weights.
        precision: of the graph.
        max_depth: most steps the graph will be run at.
        quantized: from `quantize_model`; for int8 and int4. Its weights are used up.
        opset: of the graph.
        half_scales: store scales of integers as float16 where that loses nothing; TensorRT has not
            been seen to take a scale that is cast.

    Raises:
        ExportError: a part can't be traced.
    """
    graph, results = build_graph(model, max_depth, precision)
    passes: list[Pass] = []
    if precision.quantized and quantized is not None:
        passes += _quantizing(model, quantized, half_scales)
    passes += [fold_constants, share_constants, share_nodes, partial(set_opset, opset=opset)]
    return graph, [*results, *run_passes(graph, passes)]


def _quantizing(
    model: OuroborosForCausalLM, quantized: QuantizedModel, half_scales: bool
) -> list[Pass]:
    weights = quantized.weights
    head, table = weights.pop("lm_head.weight"), weights.pop("embed_tokens.weight")
    per_word = WORD // head.bits
    head, table = head.padded(per_word), table.padded(per_word)
    joined = chain(joined_weights(model, weights), [(HEAD, head)])
    passes: list[Pass] = [
        partial(quantize_weights, weights=joined, half_scales=half_scales),
        partial(
            pack_embedding,
            table=TABLE,
            weight=table,
            factor=quantized.embedding_factor,
            half_scales=half_scales,
        ),
        partial(store_half, names=stored_half(model.config.recurrent_layers)),
    ]
    if model.config.vocab_size % per_word:
        passes.append(partial(trim_logits, vocab_size=model.config.vocab_size))
    return passes
