"""The text that integer weights are calibrated on, and the options of a quantisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.errors import ExportError, refuse_unused
from export.precision import Precision
from export.quantize.model import Quantization
from export.quantize.weights import BLOCKS
from ouroboros.errors import DataError
from ouroboros.text.windows import eval_windows, read_whole
from runtime.bundle.manifest import ACCURACY_LEVELS

WINDOWS, SEQ_LEN, LEAST_WINDOWS = 32, 256, 4


def make_quantization(
    precision: Precision,
    block: int | None,
    symmetric: bool | None,
    calibration: Path | None,
    accuracy_level: int | None,
    tensorrt: bool,
) -> Quantization | None:
    """Returns how to quantise at a precision; None for floats.

    Without an `accuracy_level`, calibrated weights run on 8-bit activations, which calibration has
    made fit for them, and rounded ones in float32.

    Args:
        precision: of the bundle.
        block: inputs that share a scale; None for 32.
        symmetric: without zero points; None leaves them out for TensorRT only.
        calibration: text that the weights are chosen on; None rounds them.
        accuracy_level: of ONNX Runtime's MatMulNBits, 1 or 4; None: see above.
        tensorrt: plans are to be built from the weights.

    Raises:
        ExportError: an option that this precision or TensorRT has no use for, or an unknown block
            size or accuracy level.
    """
    if precision.bits is None:
        options = {
            "--block-size": block,
            "--asymmetric" if symmetric is False else "--symmetric": symmetric,
            "--calibration": calibration,
            "--accuracy-level": accuracy_level,
        }
        refuse_unused(options, "int8 and int4", precision.name)
        return None
    symmetric = tensorrt if symmetric is None else symmetric
    if tensorrt and not symmetric:
        raise ExportError("TensorRT takes no zero points", "leave out --asymmetric")
    block = BLOCKS[0] if block is None else block
    if block not in BLOCKS:
        allowed = ", ".join(map(str, BLOCKS))
        raise ExportError(f"--block-size {block} is not allowed", f"allowed: {allowed}")
    exact, fast = ACCURACY_LEVELS
    level = accuracy_level
    if level is None:
        level = exact if calibration is None else fast
    if level not in ACCURACY_LEVELS:
        raise ExportError(f"--accuracy-level {accuracy_level} is not allowed", "allowed: 1, 4")
    return Quantization(precision.bits, block, symmetric, accuracy_level=level)


def read_calibration(path: Path, tokenizer: Any) -> torch.Tensor:
    """Returns int64 `[windows, seq]` of the first of a text, at most 32 windows of 256 tokens.

    Raises:
        DataError: the file can't be read.
        ExportError: it holds fewer than 4 windows.
    """
    text = read_whole(path)
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
