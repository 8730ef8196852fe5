"""Memory for time: a layer's inner states are computed again on the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, recompute: bool, *inputs: Any, **named: Any) -> torch.Tensor:
    """Calls a layer; where `recompute`, what its backward pass needs is not kept but made again.

    The result and the gradients are the same bits. Nothing is to be saved where no gradient is
    asked for, nor may a cache be filled twice.

    Args:
        layer: returns a tensor.
        recompute: whether to.
        inputs: its first arguments.
        named: its other ones.
    """
    result: torch.Tensor
    if recompute and torch.is_grad_enabled():
        result = checkpoint(layer, *inputs, use_reentrant=False, **named)
    else:
        result = layer(*inputs, **named)
    return result
