"""Which weights of the PyTorch model each weight of the graph is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from export.layout import (
    BRIDGE_WEIGHT,
    GATE_WEIGHT,
    GROUPS,
    attention_scale,
    layer_name,
    looped_name,
)
from export.quantize.weights import QuantizedWeight, join
from ouroboros.model.modeling import OuroborosForCausalLM


def joined_weights(
    model: OuroborosForCausalLM, chosen: dict[str, QuantizedWeight]
) -> Iterator[tuple[str, QuantizedWeight]]:
    """Yields the graph's quantised weights by name, joined and scaled as the graph has them.

    Args:
        model: for its layers.
        chosen: integers by the parameter's name in `model`; what was joined is taken out, so that
            a large model's are not held twice.
    """
    for graph_prefix, prefix, layer in _layers(model):
        scale = attention_scale(layer)
        for group, parts in GROUPS.items():
            weights = [chosen.pop(f"{prefix}.{part}.weight") for part in parts]
            if group == "qkv":
                weights[0] = weights[0].scaled(scale)
            yield f"{graph_prefix}.{group}.weight", join(weights)
    if model.bridge is not None:
        yield BRIDGE_WEIGHT, chosen.pop("bridge.weight")
    if model.recurrent.gate is not None:
        yield GATE_WEIGHT, chosen.pop("recurrent.gate.proj.weight")


def _layers(model: OuroborosForCausalLM) -> Iterator[tuple[str, str, Any]]:
    for slot, layer in enumerate(model.prelude):
        yield layer_name(slot), f"prelude.{slot}", layer
    for place, layer in enumerate(model.recurrent.layers):
        yield looped_name(place), f"recurrent.layers.{place}", layer
    for place, layer in enumerate(model.coda):
        yield layer_name(len(model.prelude) + place), f"coda.{place}", layer
