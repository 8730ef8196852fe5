"""Graph passes, one a file, each `pass(model) -> result`; a model is changed in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from export.graph.passes.result import Pass, PassResult

__all__ = ["run_passes"]


def run_passes(model: ir.Model, passes: Iterable[Pass]) -> list[PassResult]:
    """Runs passes on a model in their order.

    Args:
        model: changed in place.
        passes: functions `pass(model) -> result`.

    Returns:
        What each pass did, in the same order.
    """
    return [apply(model) for apply in passes]
