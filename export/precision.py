"""What a bundle computes in and stores: the precisions of `ouro export --precision`.

Every precision keeps float32 islands: norms, softmax, rotary embedding, pooled mean, gate, residual
stream and the logits that come out. Only matrix products and the cache are narrower.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from export.errors import ExportError
from runtime.bundle import contract


@dataclass(frozen=True)
class Precision:
    """One precision.

    Attributes:
        name: as the user gives it and the manifest says it.
        compute: type of the matrix products and of the cache.
        bits: of the quantised weights; None where weights are floats of `compute`.
    """

    name: str
    compute: torch.dtype
    bits: int | None = None

    @property
    def half(self) -> torch.dtype | None:
        """The 16-bit type it computes in; None for float32."""
        return None if self.compute == torch.float32 else self.compute

    @property
    def quantized(self) -> bool:
        """Whether weights are stored as integers."""
        return self.bits is not None


PRECISIONS = {
    one.name: Precision(one.name, getattr(torch, one.compute), one.bits)
    for one in contract.PRECISIONS.values()
}


def find_precision(name: str) -> Precision:
    """Returns the precision called `name`.

    Raises:
        ExportError: there is none.
    """
    if name not in PRECISIONS:
        raise ExportError(
            f"precision={name} is not in this version", f"allowed: {', '.join(PRECISIONS)}"
        )
    return PRECISIONS[name]


def narrow(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Casts to `dtype`; what lies outside float16's range becomes its largest number."""
    return x if x.dtype == dtype else _saturate(x, dtype).to(dtype)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns `x @ weight`, computed in the weight's type, as float32 and finite.

    A float16 product that overflows is infinite; the largest number in its place keeps NaN away.
    """
    return _saturate((narrow(x, weight.dtype) @ weight).float(), weight.dtype)


def _saturate(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype != torch.float16:
        return x
    most = torch.finfo(torch.float16).max
    return x.clamp(-most, most)
