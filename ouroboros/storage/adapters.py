"""Low-rank updates that are part of a checkpoint's weights, kept beside them as their factors.

`model.safetensors` holds the merged weight, which is all that loading, export and running know.
The factors lie in `adapters.safetensors`, so that a delta can hold them in place of the whole
matrix. Of the n-th update of the weight NAME these are `NAME.n.a` `[rank, in]` and `NAME.n.b`
`[out, rank]`, any scale already in the latter.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ouroboros.errors import CheckpointError
from ouroboros.storage.tensors import KINDS, StoredTensor, pieces_of, write_tensors
from runtime.files.destinations import ADAPTERS

_FACTOR = re.compile(r"(?P<weight>.+)\.(?P<number>[1-9]\d{0,5})\.(?P<side>[ab])")
_BLOCK = 1 << 16  # numbers of a product held at a time, to stay in the processor's cache


@dataclass(frozen=True)
class Update:
    """What is added to a weight `[out, in]`: the product b a.

    Attributes:
        a: `[rank, in]`.
        b: `[out, rank]`.
    """

    a: torch.Tensor
    b: torch.Tensor

    def fits(self, shape: Iterable[int]) -> bool:
        """Says whether it is an update of a weight of a shape."""
        sides = tuple(shape)
        if len(sides) != 2 or self.a.ndim != 2 or self.b.ndim != 2:
            return False
        same_rank = self.a.shape[0] == self.b.shape[1]
        return same_rank and sides == (self.b.shape[0], self.a.shape[1])


def factor_names(weight: str, number: int) -> tuple[str, str]:
    """Returns the names of a and b of a weight's update; the first has the number 1."""
    return f"{weight}.{number}.a", f"{weight}.{number}.b"


def add_updates(weight: torch.Tensor, updates: Iterable[Update]) -> torch.Tensor:
    """Returns a weight with its updates added, one after the other, float32 `[out, in]` on the CPU.

    Each entry is computed in float32 by single multiplications and additions, each rounded to the
    nearest: p = 0; p = p + b[i, k] * a[k, j] for k in ascending order; then w = w + p. No library
    for matrices is asked, whose sums differ in their last bits from one to the next, so the result
    is the same to the bit on every machine and at any number of threads.

    Args:
        weight: `[out, in]`, any float type; it is not changed.
        updates: that fit it, in their order.
    """
    total = weight.detach().to("cpu", torch.float32, copy=True).contiguous()
    for update in updates:
        a, b = (one.detach().to("cpu", torch.float32) for one in (update.a, update.b))
        rows = max(1, _BLOCK // max(1, total.shape[1]))
        for start in range(0, len(total), rows):
            block = total[start : start + rows]
            product, term = torch.zeros_like(block), torch.empty_like(block)
            for k in range(len(a)):
                torch.mul(b[start : start + rows, k, None], a[k], out=term)
                product.add_(term)
            block.add_(product)
    return total


def write_updates(updates: Mapping[str, Iterable[Update]]) -> bytes:
    """Returns the content of `adapters.safetensors`.

    Args:
        updates: of each weight by its name, in the order in which they were made.
    """
    tensors = []
    for weight, ones in updates.items():
        for number, update in enumerate(ones, start=1):
            for name, value in zip(factor_names(weight, number), (update.a, update.b), strict=True):
                read = partial(pieces_of, value)
                tensors.append(StoredTensor(name, KINDS[value.dtype], tuple(value.shape), read))
    content = io.BytesIO()
    write_tensors(content, tensors)
    return content.getvalue()


def read_updates(folder: Path) -> dict[str, list[Update]]:
    """Reads the updates of a checkpoint's weights; none where it has no `adapters.safetensors`.

    Raises:
        CheckpointError: the file is damaged, or holds something else.
    """
    file = folder / ADAPTERS
    if not file.is_file():
        return {}
    factors: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no dict)
                value = opened.get_tensor(name)
                found = _FACTOR.fullmatch(name)
                if found is None or value.dtype not in KINDS or not bool(value.isfinite().all()):
                    raise _damaged(file, f"{name!r:.80} is no factor of an update")
                numbers = factors.setdefault(found["weight"], {})
                numbers.setdefault(int(found["number"]), {})[found["side"]] = value
    except (SafetensorError, OSError) as error:
        raise _damaged(file, " ".join(str(error).split())) from error
    return {weight: _in_order(file, weight, numbers) for weight, numbers in factors.items()}


def _in_order(
    file: Path, weight: str, numbers: Mapping[int, Mapping[str, torch.Tensor]]
) -> list[Update]:
    """Returns a weight's updates, which must be numbered 1, 2, ... and have both their factors."""
    updates = []
    for number in range(1, len(numbers) + 1):
        sides = numbers.get(number, {})
        if sides.keys() != {"a", "b"}:
            raise _damaged(file, f"update {number} of {weight:.80} lacks a factor")
        updates.append(Update(**sides))
    return updates


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: {what}",
        "copy it again, or remove it: the weights are whole without it, only a delta grows",
    )
