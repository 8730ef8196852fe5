"""A linear map that carries the hidden state over the layers that were removed."""

from __future__ import annotations

import torch

from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.modulation import ConstantLinear


class Bridge(ConstantLinear):
    """h + T h + t, beside the loop: `weight` is T `[hidden, hidden]`, `bias` t `[hidden]`.

    What the prelude leaves is no state that the looped layer or the coda ever saw; a full-rank
    linear map brings it most of the way. A conversion fits it in closed form
    (`ouroboros.conversion.bridge`), training goes on from there. It starts as the identity.
    """

    def __init__(self, config: OuroborosConfig) -> None:
        """Makes the identity for the model's hidden size."""
        super().__init__(config.hidden_size, config.hidden_size)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Maps h `[batch, seq, hidden]` to the same shape and type."""
        mapped: torch.Tensor = input + super().forward(input)
        return mapped
