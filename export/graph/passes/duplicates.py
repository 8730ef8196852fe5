"""Duplicates: equal small constants are kept once, and so are nodes that compute the same.

Every kept layer is a copy of one traced layer, so that its reshape targets, axes and epsilons
come once a layer. Weights are not looked at: the graph holds each once by construction, and two
that are equal today (biases before training) must stay two where a plan's weights are replaced.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.passes.result import PassResult

LARGEST = 8


def share_constants(model: ir.Model) -> PassResult:
    """Keeps one of several equal initializers of up to `LARGEST` elements in each graph.

    The loop's body and the graph around it are looked at apart: a weight that ONNX Runtime is to
    fuse inside the loop must be an initializer of the body.

    Args:
        model: changed in place.

    Source: onnx_ir's DeduplicateInitializersPass.
    """
    before = sum(len(graph.initializers) for graph in model.graphs())
    common.DeduplicateInitializersPass(size_limit=LARGEST)(model)
    changed = before - sum(len(graph.initializers) for graph in model.graphs())
    return PassResult("share_constants", changed, f"equal constants, of {before} constants")


def share_nodes(model: ir.Model) -> PassResult:
    """Removes nodes that compute what another of the same graph does, and nodes nothing reads.

    Args:
        model: changed in place.

    Source: onnx_ir's CommonSubexpressionEliminationPass, given one graph after another: by
    itself it leaves the bodies of loops alone.
    """
    before = _count_nodes(model)
    for graph in list(model.graphs()):
        part = ir.Model(graph, ir_version=model.ir_version or 10)
        common.CommonSubexpressionEliminationPass()(part)
    common.RemoveUnusedNodesPass()(model)
    changed = before - _count_nodes(model)
    return PassResult("share_nodes", changed, f"equal or unused nodes, of {before} nodes")


def _count_nodes(model: ir.Model) -> int:
    return sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph))
