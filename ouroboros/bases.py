"""Frozen low-rank bases: what the removed layers had that the looped one has not.

Source: arXiv 2604.02051, section 3 (`mean`); Relaxed Recursive Transformers, arXiv 2410.20672
(`per_step`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ouroboros.configuration import PROJECTIONS
from ouroboros.modulation import ModulatedLinear


def truncated_svd(residual: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns A `[rank, in]` and B `[out, rank]` with B @ A the best rank-r match of `residual`.

    A holds right singular vectors, B left ones times the singular values. Signs are fixed (the
    largest entry of each row of A is positive), so that two machines agree.
    """
    u, s, vh = torch.linalg.svd(residual.float(), full_matrices=False)
    a, b = vh[:rank], u[:, :rank] * s[:rank]
    peaks = a.abs().argmax(-1, keepdim=True)
    signs = a.gather(-1, peaks).sign()
    return a * signs, b * signs.T


@torch.no_grad()
def fill_bases(
    projections: dict[str, ModulatedLinear],
    read: Callable[[int, str], torch.Tensor],
    removed: Sequence[int],
    recurrent: int,
) -> None:
    """Fills the bases of all seven projections from the residuals of the removed layers.

    One weight of a removed layer is held at a time.

    Args:
        projections: the modulated projections by name.
        read: returns the float32 weight `[out, in]` of a layer of the original model, by the
            layer's number and the projection's name.
        removed: numbers of the replaced layers, the recurrent one skipped.
        recurrent: number of the looped layer.
    """
    if not removed:
        return
    for name in PROJECTIONS:
        target = projections[name]
        centre = read(recurrent, name)
        if target.lora_a.shape[0] == 1:
            total = torch.zeros_like(centre)
            for index in removed:
                total += read(index, name) - centre
            _fill(target, 0, total / len(removed))
        else:
            for base, index in enumerate(removed):
                _fill(target, base, read(index, name) - centre)


def _fill(target: ModulatedLinear, base: int, residual: torch.Tensor) -> None:
    a, b = truncated_svd(residual, target.lora_a.shape[1])
    target.lora_a[base].copy_(a)
    target.lora_b[base].copy_(b)
