"""How a checkpoint is exported. Standard library only: `ouro export --help` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.options import option


@dataclass(frozen=True)
class ExportOptions:
    """Options of one export; those of TensorRT plans are `TrtOptions`."""

    format: str = option("onnx", "onnx, or trt for TensorRT plans beside the graph")
    max_depth: int | None = option(
        None, "the largest depth the bundle will run; default: 16, or all the checkpoint has"
    )
    precision: str = option("fp32", "fp32, fp16, bf16 (GPUs only), int8 or int4")
    block_size: int | None = option(
        None, "weights that share a scale, of int8 and int4: 32, 64 or 128; default: 32"
    )
    symmetric: bool | None = option(
        None,
        "int8 and int4 without zero points, as TensorRT needs them, or with, which is nearer; "
        "default: without for --format trt only",
        "--symmetric/--asymmetric",
    )
    sensitive_bits: int | None = option(
        None,
        "int4: of embedding, LM head and the matrices whose errors cost most, 8 or 4; default: 8, "
        "or 4 for a model trained with --qat int4",
    )
    calibration: Path | None = option(
        None, "text on which GPTQ chooses int8 and int4 weights; default: rounding"
    )
    accuracy_level: int | None = option(
        None,
        "int8 and int4 on a CPU: 1 exact; 4 faster, on 8-bit activations; default: 4 with "
        "--calibration, else 1",
    )
    opset: int = option(24, "of the ONNX graph: 21 or 24")
