"""Frozen matrices in bfloat16 while a run computes in it.

Autocast casts a weight at every use, and keeps the result only of weights that train. A frozen
layer of the loop would be cast at every step, and each copy held for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class HalvedWeights:
    """Frozen weights that were cast once.

    Attributes:
        floats: each with the values that it had, in the memory of the CPU.
    """

    floats: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def float_bytes(self) -> int:
        """What the values take in the memory of the CPU."""
        return sum(floats.nbytes for _, floats in self.floats)

    def restore(self) -> None:
        """Gives every weight its own values back."""
        for weight, floats in self.floats:
            weight.data = floats.to(weight.device)


def parts_run(model: Any, stated: bool) -> list[nn.Module]:
    """Returns the parts of an Ouroboros model that a training runs.

    Args:
        model: an `OuroborosForCausalLM`.
        stated: what the prelude makes of the text is read from disk.
    """
    return [model.recurrent, model.coda, *([] if stated else [model.prelude])]


def halve_frozen(parts: Iterable[nn.Module]) -> HalvedWeights:
    """Casts what is frozen of all linear layers to bfloat16, low-rank bases among it.

    Under autocast to bfloat16 results and gradients are the same bits before and after.

    Args:
        parts: whose layers; neither the embedding nor the LM head, which are read in float32 too.
    """
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for module in (m for part in parts for m in part.modules() if isinstance(m, nn.Linear)):
        for name, buffer in module.named_buffers(recurse=False):
            # What it is a view of would stay float32, and torch.compile takes no such pair.
            if buffer._is_view():
                setattr(module, name, buffer.clone())
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dtype == torch.float32 and not tensor.requires_grad:
                found.append((tensor, tensor.data.cpu()))
                tensor.data = tensor.data.bfloat16()
    return HalvedWeights(tuple(found))
