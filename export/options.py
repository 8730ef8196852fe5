"""How a checkpoint is exported. Standard library only: `ouro export --help` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ouroboros.model.integer_blocks import BITS, BLOCKS
from runtime.options import option

Options = TypeVar("Options", "ExportOptions", "TrtOptions")

DEFAULT_MAX_DEPTH = 16
DEFAULT_MAX_SEQ = 2048
DEFAULT_BLOCK, DEFAULT_SENSITIVE_BITS = BLOCKS[0], BITS[-1]
OPSETS = (21, 24)
OPSET = OPSETS[-1]  # which the tracer writes
# Built for where TensorRT-RTX has no GPU to look at: GeForce 30, 40 and 50.
DEFAULT_CAPABILITIES = ("8.6", "8.9", "12.0")


def _either(numbers: Sequence[int]) -> str:
    """Some numbers as a help names them."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}"


def with_paths(options: Options) -> Options:
    """Returns options whose files may be given as text."""
    paths = ("calibration", "refit_from", "timing_cache")
    given = {name: one for name in paths if isinstance(one := getattr(options, name, None), str)}
    changes: dict[str, Any] = {name: Path(one) for name, one in given.items()}
    return replace(options, **changes)


@dataclass(frozen=True)
class ExportOptions:
    """Options of one export; those of TensorRT plans are `TrtOptions`."""

    format: str = option("onnx", "onnx, or trt for TensorRT plans beside the graph")
    max_depth: int | None = option(
        None,
        f"the largest depth the bundle will run; default: {DEFAULT_MAX_DEPTH}, or all the "
        "checkpoint has",
    )
    precision: str = option("fp32", "fp32, fp16, bf16 (GPUs only), int8 or int4")
    block_size: int | None = option(
        None,
        f"weights that share a scale, of int8 and int4: {_either(BLOCKS)}; "
        f"default: {DEFAULT_BLOCK}",
    )
    symmetric: bool | None = option(
        None,
        "int8 and int4 without zero points, as TensorRT needs them, or with, which is nearer; "
        "default: without for --format trt only",
        "--symmetric/--asymmetric",
    )
    sensitive_bits: int | None = option(
        None,
        "int4: of embedding, LM head and the matrices whose errors cost most, "
        f"{_either(BITS[::-1])}; default: {DEFAULT_SENSITIVE_BITS}, or 4 for a model trained with "
        "--qat int4",
    )
    calibration: Path | None = option(
        None, "text on which GPTQ chooses int8 and int4 weights; default: rounding"
    )
    accuracy_level: int | None = option(
        None,
        "int8 and int4 on a CPU: 1 exact; 4 faster, on 8-bit activations; default: 4 with "
        "--calibration, else 1",
    )
    opset: int = option(OPSET, f"of the ONNX graph: {_either(OPSETS)}")


@dataclass(frozen=True)
class TrtOptions:
    """What may be said about a TensorRT plan."""

    flavour: str = option(
        "auto", "auto, trt (TensorRT) or rtx (TensorRT for RTX, needs no GPU)", "--trt"
    )
    compute_capabilities: tuple[str, ...] = option(
        (),
        "of the GPUs an rtx plan is for, such as 8.6,8.9,12.0; default: this machine's, without a "
        f"GPU {','.join(DEFAULT_CAPABILITIES)}",
        "--compute-capability",
    )
    max_batch: int = option(4, "most rows of a plan")
    max_seq: int | None = option(
        None, f"most tokens of a plan; default: {DEFAULT_MAX_SEQ}, or the model's positions"
    )
    opt_batch: int = option(1, "rows that a plan serves best")
    opt_past: int = option(256, "tokens in the cache that a plan serves best")
    opt_new: int = option(64, "new tokens that a plan's prefill serves best")
    refit: bool = option(False, "keep a plan's weights replaceable", "--refit")
    refit_from: Path | None = option(
        None,
        "a bundle with a plan built with --refit: takes that plan, and what it serves best, with "
        "this checkpoint's weights in place of a build",
    )
    workspace_mb: int | None = option(
        None, "MiB of scratch memory that TensorRT may use; default: TensorRT's own"
    )
    timing_cache: Path | None = option(
        None,
        "keep the kernels that TensorRT times in this file, and start the next build from it; not "
        "for rtx",
    )
