"""PyTorch's exporter to ONNX, without what takes time and gives nothing for what is traced here."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram

_aten = torch.ops.aten
# What `run_decompositions` makes of an operator that the exporter can't translate: the operator,
# its arguments and options, of those of the first.
_SIMPLER: dict[Any, Callable[..., tuple[Any, tuple[Any, ...], dict[str, Any]]]] = {
    _aten.to.dtype: lambda x, dtype, *_, **__: (_aten._to_copy.default, (x,), {"dtype": dtype}),
    _aten.rsub.Scalar: lambda x, y, alpha=1: (_aten.sub.Tensor, (y, x), {"alpha": alpha}),
    _aten.__and__.Tensor: lambda x, y: (_aten.bitwise_and.Tensor, (x, y), {}),
}
_decompose: Callable[..., ExportedProgram] = ExportedProgram.run_decompositions


def run_exporter(part: nn.Module, inputs: Any, dynamic_shapes: Any, opset: int) -> ir.Model:
    """Traces a module as `torch.onnx.export` does, in less time and without a word.

    It changes settings of the whole process while it runs.

    Args:
        part: put into eval mode.
        inputs: examples of what `forward` takes.
        dynamic_shapes: which of their axes vary, as `torch.export.export` takes it.
        opset: of the ONNX operators.

    Raises:
        Exception: of many kinds; it can't be traced.
    """

    def run() -> ir.Model:
        program = torch.onnx.export(
            part.eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            opset_version=opset,
            optimize=True,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no graph")
        model: ir.Model = program.model
        return model

    with torch.no_grad(), _quiet(), _no_collection(), _no_operator_cache():
        try:
            with _not_decomposed():
                return run()
        except Exception:  # the exporter's own kinds: an operator that only others can express
            return run()


@contextmanager
def _not_decomposed() -> Iterator[None]:
    """Has the exporter translate a program as it was traced.

    It puts each through `run_decompositions` first, which computes all symbolic sizes twice more:
    more than half of a trace's time (medians of four in turn: 13.4 and 5.2 s for a small model's
    parts). The graph has a node or two less, and computes the same bits.
    """

    @wraps(_decompose)
    def leave(
        program: ExportedProgram, decomp_table: dict[Any, Any] | None = None, **options: Any
    ) -> ExportedProgram:
        if decomp_table is None or _writes(program):
            return _decompose(program, decomp_table, **options)
        for node in program.graph.nodes:
            if simpler := _SIMPLER.get(node.target):
                node.target, node.args, node.kwargs = simpler(*node.args, **node.kwargs)
        return program

    # Not what was there before: that may be another thread's, and would stay for good.
    ExportedProgram.run_decompositions = leave  # type: ignore[method-assign]
    try:
        yield
    finally:
        ExportedProgram.run_decompositions = _decompose  # type: ignore[method-assign]


def _writes(program: ExportedProgram) -> bool:
    """Whether an operator of a program writes in place, or may do so in a program inside it."""
    if next(program.graph_module.children(), None) is not None:
        return True
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    return any(one._schema.is_mutable for one in targets if hasattr(one, "_schema"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes on optional packages and deprecations off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Puts the cyclic garbage collector off: a trace's many small objects all live to its end.

    It is a sixth of the time of a small model's export (medians of four in turn: 13.9 and 11.9 s).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _no_operator_cache() -> Iterator[None]:
    """Puts off what PyTorch keeps of operators it saw: of symbolic sizes it finds too few again.

    It is a sixth of a trace's time (medians of three in turn: 9.6 and 8.0 s for a small model's
    parts). The graph is the same to the byte.
    """
    from torch._dynamo import config

    option = "fake_tensor_cache_enabled"  # no documented one: another release may lack it
    with config.patch({option: False}) if hasattr(config, option) else nullcontext():
        yield
