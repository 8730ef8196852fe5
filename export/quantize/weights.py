"""Weights as blocks of integers: w = (q - zero) * scale, a scale for every block of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError
from export.precision import PRECISIONS
from ouroboros.model.integer_blocks import BLOCKS, fitting_blocks

Array = NDArray[Any]


@dataclass(frozen=True)
class QuantizedWeight:
    """One weight matrix `[in, out]`, blocks along `in`.

    Attributes:
        values: integers `[in, out]`, int8 within -8..7 or -128..127 where symmetric, uint8 within
            0..15 or 0..255 else.
        scales: float32 `[in / block, out]`.
        zeros: uint8 `[in / block, out]`; None where symmetric, which is zero 0.
        bits: 4 or 8.
    """

    values: Array
    scales: Array
    zeros: Array | None
    bits: int

    @property
    def block(self) -> int:
        """Inputs that share a scale."""
        return int(self.values.shape[0] // self.scales.shape[0])

    @property
    def half_scales(self) -> bool:
        """Whether float16 holds every scale as it is; a scaled one it may not."""
        return bool((self.scales.astype(np.float16).astype(np.float32) == self.scales).all())

    def dequantized(self) -> Array:
        """The weights these integers stand for, float32 `[in, out]`."""
        whole = self.values.reshape(len(self.scales), self.block, -1).astype(np.float32)
        if self.zeros is not None:
            whole -= self.zeros[:, None].astype(np.float32)
        whole *= self.scales[:, None]
        return whole.reshape(self.values.shape)

    def columns(self, start: int, stop: int) -> QuantizedWeight:
        """The outputs from `start` up to `stop`."""
        zeros = None if self.zeros is None else self.zeros[:, start:stop]
        values, scales = self.values[:, start:stop], self.scales[:, start:stop]
        return QuantizedWeight(values, scales, zeros, self.bits)

    def scaled(self, factor: float) -> QuantizedWeight:
        """The same integers, every weight times `factor`."""
        scales = self.scales * np.float32(factor)
        return QuantizedWeight(self.values, scales, self.zeros, self.bits)

    def padded(self, multiple: int) -> QuantizedWeight:
        """Columns of zeros added until their number is a multiple."""
        missing = -self.values.shape[1] % multiple
        if not missing:
            return self
        columns = ((0, 0), (0, missing))
        zeros = None if self.zeros is None else np.pad(self.zeros, columns)
        return QuantizedWeight(
            np.pad(self.values, columns),
            np.pad(self.scales, columns, constant_values=1.0),  # TensorRT wants scales above 0
            zeros,
            self.bits,
        )


@dataclass(frozen=True)
class QuantizedModel:
    """The integers of a model.

    Attributes:
        weights: by the parameter's name, each `[in, out]`.
        embedding_factor: float32 `[hidden]`, what a row that was looked up is multiplied by; None
            where the embedding is what its integers say.
    """

    weights: dict[str, QuantizedWeight]
    embedding_factor: Array | None = None


def join(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Puts matrices of the same input side by side, as one MatMul reads them."""
    first = weights[0]
    zeros = [weight.zeros for weight in weights if weight.zeros is not None]
    return QuantizedWeight(
        np.concatenate([weight.values for weight in weights], axis=1),
        np.concatenate([weight.scales for weight in weights], axis=1),
        np.concatenate(zeros, axis=1) if zeros else None,
        first.bits,
    )


def pack(values: Array, bits: int) -> Array:
    """Packs integers along the last axis as ONNX does, low bits first: uint8 `[..., n * bits / 8]`.

    Args:
        values: int8 or uint8 `[..., n]`; those of 8 bits are not copied.
        bits: 4 or 8.

    Source: ONNX, TensorProto.INT4: two elements a byte, the first in the low half.
    """
    raw = values.view(np.uint8)
    if bits == 8:
        return raw
    return np.ascontiguousarray((raw[..., 0::2] & 15) | (raw[..., 1::2] << 4))


def check_block(block: int, inputs: Sequence[int]) -> None:
    """Refuses a block size that does not cut every matrix evenly.

    Args:
        block: inputs that share a scale.
        inputs: rows of every matrix `[in, out]`.

    Raises:
        ExportError: naming the sizes that do, or the precisions that have none.
    """
    fitting = fitting_blocks(inputs)
    if block in fitting:
        return
    odd = sorted({rows for rows in inputs if rows % block})
    problem = (
        f"block_size={block} does not fit this model's matrices: {_and(odd)} inputs can't be cut "
        f"into blocks of {block}"
    )
    if fitting:
        raise ExportError(problem, f"allowed: {', '.join(map(str, fitting))}")
    floats = [name for name, precision in PRECISIONS.items() if not precision.quantized]
    raise ExportError(
        f"{problem}, and none of {', '.join(map(str, BLOCKS))} fits all of them",
        f"export with --precision {', '.join(floats[:-1])} or {floats[-1]}",
    )


def _and(numbers: Sequence[int]) -> str:
    texts = [str(number) for number in numbers]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
