"""Weights rounded to blocks of integers: w = (q - zero) * scale, a scale for every block of inputs.

One form for training that looks ahead to it and for the export that stores it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ouroboros.errors import ConfigError
from ouroboros.model.integer_blocks import BITS, BLOCKS

ROWS = 8192  # rounded at a time: an embedding's rows are many
SCALES = torch.float16  # the type that every scale is a value of, so that it is stored in 2 bytes


@dataclass(frozen=True)
class Rounding:
    """How a matrix is rounded.

    Attributes:
        bits: 4 or 8.
        block: inputs that share a scale.
        symmetric: no zero points; the only form TensorRT takes.
    """

    bits: int
    block: int = 32
    symmetric: bool = True

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest integer."""
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.symmetric else (0, 2 * half - 1)

    def blocks(self, weight: torch.Tensor) -> torch.Tensor:
        """Cuts `[out, in]` into `[out, in / block, block]`."""
        return weight.reshape(len(weight), -1, self.block)

    def span(self, weight: torch.Tensor, part: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero of every block `[out, in / block]` that span `part` of its values.

        Both float32; scales are positive, which TensorRT asks, and values of float16.
        """
        blocks = self.blocks(weight)
        least, greatest = self.limits
        low = (blocks.amin(-1) * part).clamp(max=0.0)
        high = (blocks.amax(-1) * part).clamp(min=0.0)
        if self.symmetric:
            scales = _narrow(torch.maximum(low / least, high / greatest))
            return scales, torch.zeros_like(scales)
        scales = _narrow((high - low) / greatest)
        return scales, (-low / scales).round().clamp(least, greatest)

    def integers(
        self, weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
    ) -> torch.Tensor:
        """The nearest integers, as floats; the arguments broadcast."""
        return (weight / scales + zeros).round().clamp(*self.limits)

    @torch.no_grad()
    def nearest(self, weight: torch.Tensor) -> torch.Tensor:
        """What the nearest integers stand for, float32 `[out, in]`, equal to the export's."""
        rounded = torch.empty_like(weight, dtype=torch.float32)
        for start in range(0, len(weight), ROWS):
            rows = weight[start : start + ROWS].float()
            scales, zeros = (part[..., None] for part in self.span(rows))
            values = self.integers(self.blocks(rows), scales, zeros)
            rounded[start : start + ROWS] = ((values - zeros) * scales).reshape(rows.shape)
        return rounded


def _narrow(scales: torch.Tensor) -> torch.Tensor:
    """The nearest positive values of float16, as float32; of tiny ones the next greater.

    Those are far apart, and a lesser one would cut a block's greatest weight off.
    """
    kind = torch.finfo(SCALES)
    least = kind.smallest_normal * kind.eps
    tiny = (scales / least).ceil().clamp(min=1.0) * least
    return (
        torch.where(scales < kind.smallest_normal, tiny, scales.clamp(max=kind.max))
        .to(SCALES)
        .float()
    )


def check_qat(values: dict[str, Any]) -> None:
    """Refuses a config's `qat` that names no rounding; an empty one is none.

    Raises:
        ConfigError: naming what is wrong.
    """
    allowed: dict[str, tuple[Any, ...]] = {
        "bits": BITS, "block": BLOCKS, "symmetric": (True, False)
    }  # fmt: skip
    if values and values.keys() != allowed.keys():
        raise ConfigError(f"qat has the keys {sorted(values)}", f"it has {sorted(allowed)}")
    for name, value in values.items():
        if value not in allowed[name] or isinstance(value, bool) != (name == "symmetric"):
            choices = ", ".join(map(str, allowed[name]))
            raise ConfigError(f"qat: {name}={value!r:.80} is unknown", f"choose one of {choices}")
