"""How the model's weights lie in the graph: what is joined, scaled, turned or stored narrower.

The one home of these facts: who traces a part, rounds a weight, stitches or stores the graph asks
here. Shapes are `[in, out]`, as `x @ weight` takes them.
"""

from __future__ import annotations

from typing import Any

import torch

from export.precision import Precision

# What the names of the parts' weights begin with, in the order of the graph.
OPENING, BRIDGE, HALTING, STEP, CLOSING = "opening", "bridge", "halting", "step", "closing"
HEAD, TABLE = f"{CLOSING}.head", f"{OPENING}.table"
BRIDGE_WEIGHT, GATE_WEIGHT = f"{BRIDGE}.weight", f"{STEP}.gate_weight"
# Groups of a layer, each one MatMul, and the projections that it joins.
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
MODULATE = f"{STEP}.modulate"
CONTROLLER = ("style_weight", "mix_1", "mix_2", "heads")


def layer_name(slot: int) -> str:
    """What the names of a layer's weights begin with, of prelude and coda.

    Args:
        slot: of the layer in the cache, from 0: the prelude's first, then the coda's.
    """
    return f"layers.{slot}"


def looped_name(place: int) -> str:
    """What the names of a looped layer's weights begin with.

    Args:
        place: of the layer in the block, from 0.
    """
    return f"{STEP}.layers.{place}"


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
    return [*bases, *(f"{MODULATE}.{name}" for name in CONTROLLER)]


def attention_scale(layer: Any) -> float:
    """What a layer's query weights are multiplied by, so that scores need no scaling.

    Normalised queries (Qwen3) undo any scale of theirs: it goes into the norm, and this is 1.

    Args:
        layer: a Hugging Face decoder layer.
    """
    return 1.0 if hasattr(layer.self_attn, "q_norm") else float(layer.self_attn.scaling)


def head_turned(precision: Precision) -> bool:
    """Whether the LM head is `[d, V]`, as a MatMul of integers takes it.

    One that is not quantised lies as an embedding does, `[V, d]`, so that a tied one is shared.
    """
    return precision.quantized


def lay_head(weight: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Returns the LM head `[V, d]` as the graph has it."""
    return weight.T if head_turned(precision) else weight
