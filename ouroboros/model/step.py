"""One recurrence of the loop.

Source: arXiv 2604.02051, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ouroboros.model.cache import CACHE, OuroborosCache
from ouroboros.model.configuration import PROJECTIONS, OuroborosConfig
from ouroboros.model.modulation import (
    Controller,
    Gate,
    Injection,
    ModulatedLinear,
    ModulationPort,
    StepNorm,
    make_modulation,
)
from ouroboros.model.pooling import POOLING, Sequences


class RecurrentStep(nn.Module):
    """One recurrence: pool, modulate, run the layers in order, normalise, gate."""

    def __init__(self, config: OuroborosConfig, layers: Sequence[nn.Module]) -> None:
        """Wraps Hugging Face decoder layers; what modulates them changes their projections."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.ports = [ModulationPort() for _ in layers]
        for layer, port, removed in zip(layers, self.ports, config.removed_layers(), strict=True):
            bases = len(removed) if config.bases == "per_step" else 1
            if config.modulation == "free":
                bases = config.max_depth
            for name in PROJECTIONS if config.modulation != "none" else ():
                owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
                linear = ModulatedLinear(getattr(owner, name), name, port, config, bases)
                setattr(owner, name, linear)
        self.controller = make_modulation(config)
        self.norm = StepNorm(config)
        self.gate = Gate(config) if config.gate else None
        self.injection = Injection(config) if config.input_injection == "add" else None
        self.pool = POOLING[config.pooling]

    def projections(self) -> list[dict[str, ModulatedLinear]]:
        """Returns the modulated projections of every layer by name: all seven, or none."""
        modulated = (
            [m for m in layer.modules() if isinstance(m, ModulatedLinear)] for layer in self.layers
        )
        return [{module.name: module for module in modules} for modules in modulated]

    def forward(
        self,
        hidden: torch.Tensor,
        step: int,
        sequences: Sequences,
        cache: OuroborosCache | None,
        entry: torch.Tensor | None = None,
        **layer_inputs: Any,
    ) -> torch.Tensor:
        """Runs step `step` on h `[batch, seq, hidden]`; of no layers it is h as it was.

        `entry` is the state at the loop's entry, of h's shape, where it is injected.
        """
        if not self.layers:
            return hidden
        count = len(self.layers)
        pooled = hidden  # a cache keeps the pooled state, read or not: a bundle's graph does too
        if cache is not None or isinstance(self.controller, Controller):
            pooled = self.pool(hidden, sequences, cache, step).to(hidden.dtype)
        modulation: Sequence[torch.Tensor | None] = [None] * count
        if self.controller is not None:
            modulation = self.controller(pooled, step).chunk(count, -1)
        new, slot = hidden, step * count
        if self.injection is not None and entry is not None:
            new = self.injection(hidden, entry)
        for layer, port, vectors in zip(self.layers, self.ports, modulation, strict=True):
            view = cache.at_entry(slot) if cache is not None else None
            with port.carrying(step, vectors):
                new = layer(new, **{CACHE: view}, **layer_inputs)
            slot += 1
        new = self.norm(new, step)
        if self.gate is not None:
            gate = self.gate(new, hidden, step)
            new = torch.lerp(hidden, new, gate.to(hidden.dtype))
        result: torch.Tensor = new
        return result


@torch.no_grad()
def gate_means(model: Any, input_ids: torch.Tensor, depth: int) -> list[float]:
    """Returns the mean gate of every step on `input_ids` `[batch, seq]`; empty without a gate."""
    gate = model.recurrent.gate
    if gate is None:
        return []
    means: list[float] = []

    def record(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        means.append(float(output.float().mean()))

    handle = gate.register_forward_hook(record)
    try:
        model(input_ids=input_ids, depth=depth, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return means
