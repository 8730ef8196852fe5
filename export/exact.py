"""A float64 twin of a float32 model: what both PyTorch's and an engine's errors are measured by."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from ouroboros.model.modeling import OuroborosForCausalLM

_ROWS = 1 << 14  # of an LM head, widened at a time


def exact_twin(model: OuroborosForCausalLM) -> OuroborosForCausalLM:
    """Returns a model that computes in float64 with the weights of `model`, which it shares.

    A block is widened while it runs, so that a twin of billions of weights costs the memory of
    its largest block. Rotary angles, cosines and sines stay float32: they are part of what the
    model was trained as. Norms and softmax are float64 too, which `model.double()` would not give.

    Args:
        model: float32, eval mode.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin: Any = copy.deepcopy(model, shared)
    _replace_norms(twin)
    twin.embed_tokens = _ExactEmbedding(twin.embed_tokens)
    twin.prelude = nn.ModuleList(_ExactBlock(layer) for layer in twin.prelude)
    if twin.bridge is not None:
        twin.bridge = _ExactBlock(twin.bridge)
    # Run `depth` times a call, so it is widened for good.
    twin.recurrent = copy.deepcopy(twin.recurrent).double()
    if twin.halter is not None:
        twin.halter = copy.deepcopy(twin.halter).double()
    twin.coda = nn.ModuleList(_ExactBlock(layer) for layer in twin.coda)
    twin.lm_head = _ExactHead(twin.lm_head)
    result: OuroborosForCausalLM = twin.eval()
    return result


def _replace_norms(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "variance_epsilon"):  # every RMSNorm of transformers has it
                setattr(module, name, _ExactNorm(child))


class _ExactNorm(nn.Module):
    """RMSNorm without the step through float32 that transformers' takes."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = float(norm.variance_epsilon)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.double()
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        result: torch.Tensor = x * scale * self.weight.double()
        return result


class _ExactEmbedding(nn.Module):
    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table

    @property
    def weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.table.weight
        return weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.table(input_ids)
        return rows.double()


class _ExactBlock(nn.Module):
    """A decoder layer, or the bridge, whose weights are float64 while it runs."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        state = {**dict(self.block.named_parameters()), **dict(self.block.named_buffers())}
        wide = {name: value.double() for name, value in state.items() if value.is_floating_point()}
        return functional_call(self.block, wide, args, kwargs)


class _ExactHead(nn.Module):
    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = self.head.weight.split(_ROWS)
        logits = torch.cat([hidden @ part.double().T for part in rows], dim=-1)
        return logits if self.head.bias is None else logits + self.head.bias.double()
