"""Frozen low-rank bases: what the removed layers had that the looped one has not.

Source: arXiv 2604.02051, section 3 (`mean`); Relaxed Recursive Transformers, arXiv 2410.20672
(`per_step`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ouroboros.configuration import PROJECTIONS
from ouroboros.modulation import ModulatedLinear


def projection(layer: nn.Module, name: str) -> nn.Linear:
    """Returns the projection `name` of a Llama-like decoder layer."""
    owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
    linear: nn.Linear = getattr(owner, name)
    return linear


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
    layers: Sequence[nn.Module],
    removed: Sequence[int],
    recurrent: int,
) -> None:
    """Fills the bases of all seven projections from the residuals of the removed layers.

    Args:
        projections: the modulated projections by name.
        layers: all layers of the original model.
        removed: indices of the replaced layers, the recurrent one skipped.
        recurrent: index of the looped layer.
    """
    for name in PROJECTIONS:
        target = projections[name]
        centre = projection(layers[recurrent], name).weight.float()
        rank = target.lora_a.shape[1]
        if not removed:
            continue
        residuals = [projection(layers[index], name).weight.float() - centre for index in removed]
        if target.lora_a.shape[0] == 1:
            residuals = [torch.stack(residuals).mean(0)]
        for base, residual in enumerate(residuals):
            a, b = truncated_svd(residual, rank)
            target.lora_a[base].copy_(a)
            target.lora_b[base].copy_(b)
