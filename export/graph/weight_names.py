"""Which weights of the PyTorch model each weight of the graph is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from export.graph.layers import attention_scale
from export.quantize.weights import QuantizedWeight, join
from ouroboros.model.modeling import OuroborosForCausalLM

# Parts of a layer as the graph has them, and the projections that each joins.
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
HEAD, TABLE = "closing.head", "opening.table"
CONTROLLER = ("style_weight", "mix_1", "mix_2", "heads")


def looped_name(place: int) -> str:
    """What the names of a looped layer's weights begin with in the graph.

    Args:
        place: of the layer in the block, from 0.
    """
    return f"step.layers.{place}"


def stored_half(looped: int) -> list[str]:
    """Names of the weights that a quantised graph stores as float16: Controller and bases.

    Args:
        looped: layers that a step runs.
    """
    bases = [
        f"{looped_name(place)}.{group}.low_rank.{side}"
        for place in range(looped)
        for group in GROUPS
        for side in ("a", "b")
    ]
    return [*bases, *(f"step.modulate.{name}" for name in CONTROLLER)]


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
        yield "bridge.weight", chosen.pop("bridge.weight")
    if model.recurrent.gate is not None:
        yield "step.gate_weight", chosen.pop("recurrent.gate.proj.weight")


def _layers(model: OuroborosForCausalLM) -> Iterator[tuple[str, str, Any]]:
    for slot, layer in enumerate(model.prelude):
        yield f"layers.{slot}", f"prelude.{slot}", layer
    for place, layer in enumerate(model.recurrent.layers):
        yield looped_name(place), f"recurrent.layers.{place}", layer
    for place, layer in enumerate(model.coda):
        yield f"layers.{len(model.prelude) + place}", f"coda.{place}", layer
