"""Runs PyTorch on the graph's inputs and returns what the graph gives, apart from its code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.halt_scores import watch_scores
from ouroboros.model.cache import OuroborosCache
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.model.pooling import widen
from runtime.bundle import contract
from runtime.bundle.contract import (
    ATTENTION_MASK,
    BATCH,
    DEPTH,
    DEPTH_USED,
    HALT_THRESHOLD,
    INPUT_IDS,
    LOGIT_INDEX,
    LOGITS,
    PAST,
    PAST_POOL_SUM,
    PAST_PREFIX,
    POOL_SUM,
    POSITION_IDS,
    RECURRENT,
    RECURRENT_OUTPUTS,
    ROW_DEPTH,
    SLOTS,
    new_name,
)
from runtime.parity.cases import HALT_SCORES

Array = NDArray[Any]
Parts = dict[str, dict[str, Array]]
"""Tensors of a case by part, `in`, `out` or `valid`, and name."""


def take_apart(
    model: OuroborosForCausalLM, parts: Parts, rows: list[list[int]]
) -> Iterator[tuple[int, Parts]]:
    """Cuts a call of many rows into cases: each has as many steps as its deepest row."""
    # Every looped layer has keys and values of its own in a step.
    looped = model.config.recurrent_layers
    entries = {POOL_SUM: 1, **dict.fromkeys(RECURRENT_OUTPUTS, looped)}
    start = 0
    for depths in rows:
        part, depth = slice(start, start + len(depths)), max(depths)
        start += len(depths)
        yield (
            depth,
            {
                "in": {
                    name: value if name == HALT_THRESHOLD else value[part]
                    for name, value in parts["in"].items()
                }
                | {DEPTH: np.array([depth], dtype=np.int64)},
                "out": {
                    name: value[part, : depth * entries[name]] if name in entries else value[part]
                    for name, value in parts["out"].items()
                },
            },
        )


def run_case(
    model: OuroborosForCausalLM,
    ids: Array,
    mask: Array,
    rows: list[list[int]],
    cache: OuroborosCache,
    index: Array,
    first_position: int = 0,
    threshold: float = 0.0,
) -> Parts:
    """Runs PyTorch on `ids` `[B, S]` and returns the graph's inputs, but `depth`, and outputs."""
    flat = [depth for depths in rows for depth in depths]
    new, past = ids.shape[1], cache.get_seq_length()
    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, past:] + first_position
    halting = {"halt_threshold": threshold} if model.config.halting else {}

    def run() -> dict[str, Array]:
        return _run_model(model, ids, mask, positions, flat, cache, index, halting)

    if threshold:
        found, scores = watch_scores(model, run)
        found[HALT_SCORES] = scores
    else:
        found = run()
    keys, values = [], []
    for entry in range(max(flat) * model.config.recurrent_layers):
        layer = cache.layers[model.config.num_layers + entry]
        keys.append(layer.keys[:, :, -new:])
        values.append(layer.values[:, :, -new:])
    limit = {HALT_THRESHOLD: np.array([threshold], np.float32)} if halting else {}
    return {
        "in": {
            INPUT_IDS: ids,
            POSITION_IDS: positions,
            ATTENTION_MASK: mask,
            ROW_DEPTH: np.array(flat, dtype=np.int64),
            LOGIT_INDEX: index,
            **limit,
        },
        "out": {
            **found,
            new_name(RECURRENT, "key"): torch.stack(keys, 1).float().numpy(),
            new_name(RECURRENT, "value"): torch.stack(values, 1).float().numpy(),
        },
    }


def _run_model(
    model: OuroborosForCausalLM,
    ids: Array,
    mask: Array,
    positions: Array,
    rows: list[int],
    cache: OuroborosCache,
    index: Array,
    halting: dict[str, float],
) -> dict[str, Array]:
    """Returns float32 logits `[B, K, V]`, pooled sums `[B, depth, K, d]`, and the depths used.

    The cache keeps the sum at the last position only, so h before each step is recorded and
    summed here, apart from the model's own code.
    """
    past = {step: pool.clone() for step, pool in cache.pool.items()}
    hidden: list[torch.Tensor] = []
    handle = model.recurrent.register_forward_pre_hook(
        lambda module, inputs: hidden.append(widen(inputs[0]))
    )
    try:
        found = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            position_ids=torch.from_numpy(positions),
            depth=rows,
            past_key_values=cache,
            use_cache=True,
            logit_index=torch.from_numpy(index),
            **halting,
        )
    finally:
        handle.remove()
    new = ids.shape[1]
    pools = []
    for step, h in enumerate(hidden):
        match model.config.pooling:
            case "causal":
                valid = torch.from_numpy(mask[:, -new:, None]).to(h.dtype)
                sums = (h * valid).cumsum(1) + past.get(step, 0.0)
            case "mean":
                sums = cache.pool[step].expand(-1, new, -1)
            case _:
                sums = h
        picked = torch.from_numpy(index)[..., None].expand(-1, -1, h.shape[-1])
        pools.append(sums.gather(1, picked))
    outputs = {
        LOGITS: found.logits.float().numpy(),
        POOL_SUM: torch.stack(pools, 1).float().numpy(),
    }
    if found.depth_used is not None:
        outputs[DEPTH_USED] = found.depth_used.numpy()
    return outputs


def empty_past(model: OuroborosForCausalLM, batch: int, depth: int) -> dict[str, Array]:
    """Returns the graph's cache inputs before a first call: no slots, sums of zero; float32."""
    sizes = {BATCH: batch, SLOTS: depth, PAST: 0}
    return {
        spec.name: np.zeros([contract.resolve_size(s, sizes) for s in spec.shape], np.float32)
        for spec in contract.inputs(model.config, "fp32")
        if spec.name.startswith((PAST_PREFIX, PAST_POOL_SUM))
    }
