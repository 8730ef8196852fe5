"""Constant folding: what depends on constants alone is computed once, at export."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.passes.result import PassResult
from export.graph.passes.weight_only import STORED_HALF

# A folded result is stored: folding must not write out a large tensor that a node makes cheaply.
LARGEST = 8192


def fold_constants(model: ir.Model) -> PassResult:
    """Replaces nodes whose inputs are all constants by their result, in the loop's body too.

    Weights are left as they are: what reads or makes more than `LARGEST` elements is not folded.

    Args:
        model: changed in place.

    Source: onnxscript's constant folding, which evaluates with the ONNX reference operators.
    """
    from onnxscript.optimizer import fold_constants as fold

    before = _count_computing(model)
    fold(
        model,
        onnx_shape_inference=False,
        input_size_limit=LARGEST,
        output_size_limit=LARGEST,
        should_fold=lambda node: False if STORED_HALF in node.meta else None,
    )
    common.RemoveUnusedNodesPass()(model)
    changed = before - _count_computing(model)
    return PassResult("fold_constants", changed, "nodes folded, or that nothing read")


def _count_computing(model: ir.Model) -> int:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return sum(1 for node in nodes if node.op_type != "Constant")
