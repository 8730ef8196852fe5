"""Puts new weights into a plan that was built with `--refit`, without building it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.engines import EngineSpec
from runtime.errors import EngineError


def refit_plan(plan: bytes, spec: EngineSpec, onnx_file: Path, trt: Any) -> bytes:
    """A plan with the weights of another graph of the same structure. Needs the plan's GPU.

    Args:
        plan: its bytes, from `read_plan`.
        spec: its entry in the manifest.
        onnx_file: a graph exported from a newly trained checkpoint, its data files beside it.
        trt: the flavour's module, from `load_module`.

    Returns:
        The new plan, to be written under a new hash and the new graph's.

    Raises:
        EngineError: the plan was not built with `--refit`, the graphs differ in structure, or
            TensorRT refuses.
    """
    if not spec.refittable:
        raise EngineError(f"{spec.file} was built without --refit; export it again with --refit")
    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{spec.file}: TensorRT cannot load it; `ouro doctor` shows what is here")
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx_file)):
        reason = parser.get_error(0).desc() if parser.num_errors else "it gave no reason"
        raise EngineError(
            f"{spec.file} does not take the weights of {onnx_file}: {' '.join(reason.split())}; "
            "both must be exports of one model at one precision"
        )
    missing = refitter.get_missing_weights()
    if missing or not refitter.refit_cuda_engine():
        raise EngineError(
            f"{spec.file} still lacks {len(missing)} weights after {onnx_file}; export it again"
        )
    return bytes(engine.serialize())
