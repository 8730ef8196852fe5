"""A step of a block against transformers' own layers, the modulation written into their weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from ouroboros import OuroborosConfig, OuroborosForCausalLM
from ouroboros.model.cache import CACHE
from ouroboros.model.configuration import PROJECTIONS
from ouroboros.model.modulation import ModulatedLinear
from ouroboros.model.pooling import describe_sequences
from tests.support.tiny import DIMENSIONS

LENGTH, DEPTH = 7, 4


def build(family: Any, **options: Any) -> OuroborosForCausalLM:
    """A model of 6 layers, 0 | 2 | 1, in which every weight and basis is random."""
    fields = {"prelude": 0, "coda": 1, "recurrent": 2, "recurrent_layers": 2, "rank": 3, **options}
    base = family(**DIMENSIONS, head_dim=8)
    config = OuroborosConfig(base_config=base, alpha=2.0, max_depth=DEPTH, depth=3, **fields)
    model = OuroborosForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if "rotary" not in name:
                noise = torch.randn(value.shape, generator=generator)
                scale = 0.3 if value.dim() == 1 else value.shape[-1] ** -0.5
                value.copy_(1 + 0.2 * noise if name.endswith("norm.weight") else noise * scale)
    return model


def merged(model: OuroborosForCausalLM, place: int, step: int, m: torch.Tensor) -> Any:
    """A layer of the block with W + (alpha / r) B diag(m) A in place of every W; m `[7, rank]`."""
    layer: Any = copy.deepcopy(model.recurrent.layers[place])
    for name, vector in zip(PROJECTIONS, m, strict=True):
        owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
        old = getattr(owner, name)
        if not isinstance(old, ModulatedLinear):
            continue
        base = min(step, len(old.lora_a) - 1)
        plain = torch.nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
        update = old.lora_b[base] @ torch.diag(vector) @ old.lora_a[base]
        plain.weight.data = old.weight + 2.0 / 3 * update
        setattr(owner, name, plain)
    return layer


@pytest.mark.parametrize(
    ("family", "modulation", "bases"),
    [
        (LlamaConfig, "controller", "per_step"),
        (Qwen3Config, "controller", "mean"),
        (Qwen3Config, "static", "per_step"),
        (LlamaConfig, "free", "mean"),
        (Qwen3Config, "none", "mean"),
    ],
)
@torch.no_grad()
def test_block_is_its_layers_one_after_the_other(family: Any, modulation: str, bases: str) -> None:
    # The mean of the whole sequence gives all its positions one modulation.
    model = build(family, modulation=modulation, bases=bases, pooling="mean")
    config, loop = model.config, model.recurrent
    hidden = torch.randn(1, LENGTH, config.hidden_size, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(LENGTH)[None]
    sequences = describe_sequences(1, LENGTH, 0, None, None, hidden.device)
    inputs = {
        "attention_mask": sequences.additive_mask(torch.float32),
        "position_ids": positions,
        "position_embeddings": model.rotary_emb(hidden, position_ids=positions),
    }
    counts = [{len(one.lora_a) for one in layer.values()} for layer in loop.projections()]
    # Removed are 0, 1 and 4: layer 2 stands in for 0 and 4, layer 3 for 1.
    expected_counts = [{2}, {1}] if bases == "per_step" else [{1}, {1}]
    special: dict[str, list[set[int]]] = {"free": [{DEPTH}] * 2, "none": [set(), set()]}
    assert counts == special.get(modulation, expected_counts)
    for step in range(DEPTH):
        m = torch.ones(2, 7, 3)
        if modulation not in special:
            m = loop.controller(hidden.mean(1, keepdim=True), step).reshape(2, 7, 3)
        new = hidden
        for place in range(2):
            new = merged(model, place, step, m[place])(new, **inputs)
        new = new / (new.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * loop.norm.weight[step]
        assert loop.gate is not None
        gate = torch.sigmoid(loop.gate.proj(torch.cat([new, hidden], -1)))
        expected = gate * new + (1 - gate) * hidden
        found = loop(hidden, step, sequences, None, **inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        hidden = expected


@pytest.mark.parametrize("modulation", ["controller", "static", "free", "none"])
def test_only_a_controller_and_a_cache_ask_for_the_pooled_state(
    modulation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(LlamaConfig, modulation=modulation)
    pool, steps = model.recurrent.pool, list[int]()

    def count(hidden: Any, sequences: Any, cache: Any, step: int) -> torch.Tensor:
        steps.append(step)
        return pool(hidden, sequences, cache, step)

    monkeypatch.setattr(model.recurrent, "pool", count)
    ids = torch.arange(LENGTH)[None] + 1
    with torch.inference_mode():
        alone = model(ids, depth=3, use_cache=False).logits
        assert steps == (list(range(3)) if modulation == "controller" else [])
        kept = model(ids, depth=3, use_cache=True)
    assert torch.equal(kept.logits, alone)
    assert sorted(kept[CACHE].pool) == [0, 1, 2]
