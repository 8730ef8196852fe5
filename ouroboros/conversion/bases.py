"""Frozen low-rank bases: what the removed layers had that the looped ones have not.

Source: arXiv 2604.02051, section 3 (`mean`); Relaxed Recursive Transformers, arXiv 2410.20672
(`per_step`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ouroboros.model.configuration import PROJECTIONS
from ouroboros.model.modulation import ModulatedLinear

GRAM_SIZE = 1024  # a smaller side up to this is left to the SVD, which is then quick enough
LEAST_SQUARE = 1e-10


def truncated_svd(residual: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns A `[rank, in]` and B `[out, rank]` with B @ A the best rank-r match of `residual`.

    A holds right singular vectors, B left ones times the singular values. Signs are fixed (the
    largest entry of each row of A is positive), so that two machines agree.
    """
    found = top_vectors(residual, rank) if min(residual.shape) > GRAM_SIZE else None
    if found is None:
        u, s, vh = torch.linalg.svd(residual.float(), full_matrices=False)
        found = vh[:rank], u[:, :rank] * s[:rank]
    a, b = found
    peaks = a.abs().argmax(-1, keepdim=True)
    signs = a.gather(-1, peaks).sign()
    return a * signs, b * signs.T


def top_vectors(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Does the same by the eigenvectors of the smaller Gram matrix, in float64.

    Several times faster than a whole SVD. It squares the singular values, so in float64 it finds
    those that are no smaller than about 1e-8 of the largest.

    Returns:
        float32 A and B as above, signs as they come; None where one of the singular values asked
        for is too small to be told from nothing this way.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    tall = (matrix.T if wide else matrix).double()
    squares, vectors = torch.linalg.eigh(tall.T @ tall)
    squares, vectors = squares.flip(0)[:rank], vectors.flip(1)[:, :rank]
    if not bool(squares[-1] > LEAST_SQUARE * squares[0]):
        return None
    sizes, images = squares.sqrt(), tall @ vectors
    a, b = ((images / sizes).T, vectors * sizes) if wide else (vectors.T, images)
    return a.float(), b.float()


@torch.no_grad()
def fill_bases(
    layers: Sequence[dict[str, ModulatedLinear]],
    read: Callable[[int, str], torch.Tensor],
    removed: Sequence[Sequence[int]],
    first: int,
    per_step: bool,
) -> None:
    """Fills the bases of every looped layer from the residuals of the layers it stands in for.

    One weight of a removed layer is held at a time. A looped layer that stands in for none keeps
    bases of zero, the mean of no residual: whatever its modulation, it stays what it is.

    Args:
        layers: the modulated projections of every looped layer by name.
        read: returns the float32 weight `[out, in]` of a layer of the original model, by the
            layer's number and the projection's name.
        removed: for every looped layer the numbers of the removed ones it stands in for.
        first: number of the first looped layer.
        per_step: a base for each removed layer in turn, in place of one for their mean.
    """
    for own, (projections, others) in enumerate(zip(layers, removed, strict=True), start=first):
        if not others:
            continue
        for name in PROJECTIONS:
            target, centre = projections[name], read(own, name)
            rank = target.lora_a.shape[1]
            if per_step:
                found = [truncated_svd(read(other, name) - centre, rank) for other in others]
            else:
                total = torch.zeros_like(centre)
                for other in others:
                    total += read(other, name) - centre
                found = [truncated_svd(total / len(others), rank)]
            # New buffers: how many bases there are may not have been known when it was built.
            target.lora_a, target.lora_b = (
                torch.stack(ones).to(target.lora_a) for ones in zip(*found, strict=True)
            )
