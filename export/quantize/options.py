"""The text that integer weights are calibrated on, and the options of a quantisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.errors import ExportError, refuse_unused
from export.options import DEFAULT_BLOCK, DEFAULT_SENSITIVE_BITS, ExportOptions
from export.precision import Precision, find_precision
from export.quantize.model import Quantization
from ouroboros.errors import DataError
from ouroboros.model.integer_blocks import BITS, BLOCKS
from ouroboros.model.rounding import Rounding
from ouroboros.text.windows import eval_windows
from runtime.bundle.manifest import ACCURACY_LEVELS

WINDOWS, SEQ_LEN, LEAST_WINDOWS = 32, 256, 4


def make_quantization(
    precision: Precision,
    block: int | None,
    symmetric: bool | None,
    calibration: Path | None,
    accuracy_level: int | None,
    tensorrt: bool,
    sensitive_bits: int | None = None,
) -> Quantization | None:
    """Returns how to quantise at a precision; None for floats.

    Without an `accuracy_level`, calibrated weights run on 8-bit activations, which calibration has
    made fit for them, and rounded ones in float32.

    Args:
        precision: of the bundle.
        block: inputs that share a scale; None for DEFAULT_BLOCK.
        symmetric: without zero points; None leaves them out for TensorRT only.
        calibration: text that the weights are chosen on; None rounds them.
        accuracy_level: of ONNX Runtime's MatMulNBits, 1 or 4; None: see above.
        tensorrt: plans are to be built from the weights.
        sensitive_bits: of the matrices whose errors cost most; None for DEFAULT_SENSITIVE_BITS.

    Raises:
        ExportError: an option that this precision or TensorRT has no use for, or an unknown block
            size or accuracy level.
    """
    if precision.bits is None:
        options = {
            "block_size": block,
            "symmetric": symmetric,
            "calibration": calibration,
            "accuracy_level": accuracy_level,
            "sensitive_bits": sensitive_bits,
        }
        refuse_unused(options, "int8 and int4", precision.name)
        return None
    symmetric = tensorrt if symmetric is None else symmetric
    if tensorrt and not symmetric:
        raise ExportError("TensorRT takes no zero points", "leave out --asymmetric")
    block = DEFAULT_BLOCK if block is None else block
    if block not in BLOCKS:
        allowed = ", ".join(map(str, BLOCKS))
        raise ExportError(f"block_size={block} is not allowed", f"allowed: {allowed}")
    exact, fast = ACCURACY_LEVELS
    level = accuracy_level
    if level is None:
        level = exact if calibration is None else fast
    if level not in ACCURACY_LEVELS:
        raise ExportError(f"accuracy_level={accuracy_level} is not allowed", "allowed: 1, 4")
    sensitive = DEFAULT_SENSITIVE_BITS if sensitive_bits is None else sensitive_bits
    if sensitive not in BITS or sensitive < precision.bits:
        raise ExportError(
            f"sensitive_bits={sensitive} is not allowed with {precision.name}",
            f"allowed: {', '.join(str(bits) for bits in BITS if bits >= precision.bits)}",
        )
    return Quantization(
        precision.bits, block, symmetric, sensitive_bits=sensitive, accuracy_level=level
    )


def as_trained(asked: ExportOptions, qat: dict[str, Any]) -> ExportOptions:
    """Fills options that were left out with the rounding that the model was trained with.

    Args:
        asked: the options of the export.
        qat: the config's. Nothing is changed where it is empty, or where the export chooses other
            integers than the training did: at another precision, on a calibration text, or in
            other blocks or another form than it, if these are named.

    Raises:
        ExportError: TensorRT can't round as the training did, and no form is named.
    """
    bits = find_precision(asked.precision).bits
    if not qat or bits is None or asked.calibration is not None:
        return asked
    trained = Rounding(**qat)
    if trained.bits != bits:
        return asked
    for named, own in ((asked.block_size, trained.block), (asked.symmetric, trained.symmetric)):
        if named is not None and named != own:
            return asked
    if asked.format == "trt" and not trained.symmetric:
        raise ExportError(
            f"the model was trained for asymmetric int{bits}, and TensorRT takes symmetric "
            "integers only",
            "train with --qat-symmetric, or give --symmetric to round otherwise than it learned",
        )
    return replace(
        asked,
        block_size=trained.block,
        symmetric=trained.symmetric,
        sensitive_bits=bits if asked.sensitive_bits is None else asked.sensitive_bits,
    )


def cut_calibration(path: Path, text: str, tokenizer: Any) -> torch.Tensor:
    """Returns int64 `[windows, seq]` of the first of a text, at most 32 windows of 256 tokens.

    Args:
        path: where the text stands, for messages.
        text: it.
        tokenizer: the model's.

    Raises:
        ExportError: it holds fewer than 4 windows.
    """
    try:
        windows = eval_windows(text, tokenizer, SEQ_LEN, WINDOWS)
    except DataError:  # not one window
        windows = np.empty((0, SEQ_LEN), dtype=np.int64)
    if len(windows) < LEAST_WINDOWS:
        raise ExportError(
            f"{path}: too short to calibrate on, fewer than {(len(windows) + 1) * SEQ_LEN} tokens",
            f"give a text of at least {LEAST_WINDOWS * SEQ_LEN}",
        )
    return torch.from_numpy(windows)
