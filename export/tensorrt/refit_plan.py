"""Puts new weights into a plan that was built with `--refit`, without building it again."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from runtime.errors import EngineError


def refit_plan(
    plan: bytes, name: str, onnx_file: Path, changed: Collection[str], trt: Any
) -> bytes:
    """A plan with the weights of another graph of the same structure. Needs the plan's GPU.

    Args:
        plan: its bytes, from `read_plan`.
        name: its file, for messages.
        onnx_file: the other graph, in the form that plans are built from
            (`export.tensorrt.plan_files.write_plan_graph`), its data files beside it.
        changed: names of the weights that differ from those the plan was built with.
        trt: the flavour's module, from `load_module`.

    Returns:
        The new plan, to be written under a new hash and the new graph's.

    Raises:
        EngineError: the plan holds a changed weight fixed, or TensorRT refuses.

    Source: onnx-tensorrt, ModelRefitter: it looks weights up by the names of the initializers, and
    passes over those that the plan does not name.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{name}: TensorRT cannot load it", "`ouro doctor` shows what is here")
    refitter = trt.Refitter(engine, logger)
    fixed = sorted(set(changed) - set(refitter.get_all_weights()))
    if fixed:
        raise EngineError(
            f"{name} holds the weight {fixed[0]} fixed, which has changed", "build a new plan"
        )
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx_file)):
        reason = parser.get_error(0).desc() if parser.num_errors else "it gave no reason"
        raise EngineError(
            f"{name} does not take the new weights: {' '.join(reason.split())[:300]}",
            "build a new plan",
        )
    missing = refitter.get_missing_weights()
    if missing or not refitter.refit_cuda_engine():
        reason = (
            f"still lacks {len(missing)} of the new weights" if missing else "can't be refitted"
        )
        raise EngineError(f"{name} {reason}", "build a new plan")
    return bytes(engine.serialize())
