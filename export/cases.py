"""Records reference cases: inputs of the graph and what PyTorch makes of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.errors import ExportError
from ouroboros.cache import OuroborosCache
from ouroboros.modeling import OuroborosForCausalLM
from runtime.metrics import compare, compare_logits

PREFILL, DECODE, PADDED, GREEDY = 12, 3, 8, 16
PICKED = 3
GREEDY_DEPTHS = (1, 4, 8, 16)

Array = NDArray[Any]


@dataclass
class Recording:
    """Cases as flat tensors and a list of entries, as a bundle stores them.

    Attributes:
        tensors: inputs and outputs by case, part and name.
        entries: name, kind, depth and more of each case.
        finite: refuse logits that are NaN or infinite.
    """

    tensors: dict[str, Array] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    finite: bool = True

    def add(
        self,
        name: str,
        kind: str,
        depth: int,
        parts: dict[str, dict[str, Array]],
        **extra: Any,
    ) -> None:
        """Adds a case; `parts` holds its tensors under `in`, `out` and `valid`.

        Raises:
            ExportError: PyTorch's own logits are not finite.
        """
        for key in ("logits", "top2"):
            if self.finite and not np.isfinite(parts["out"].get(key, 0.0)).all():
                raise ExportError(
                    f"the model itself gives NaN or infinity at depth {depth} ({kind}): a weight "
                    "or alpha is broken; convert or train it again"
                )
        for part, tensors in parts.items():
            for key, value in tensors.items():
                self.tensors[f"{name}.{part}.{key}"] = np.ascontiguousarray(value)
        self.entries.append({"name": name, "kind": kind, "depth": depth, **extra})


@torch.no_grad()
def record_cases(
    model: OuroborosForCausalLM,
    tokenizer: Any,
    depths: Sequence[int],
    seed: int = 0,
    half: torch.dtype | None = None,
) -> tuple[dict[str, Array], list[dict[str, Any]]]:
    """Records prefill, decode and a padded batch at every depth, mixed rows and greedy tokens.

    Args:
        model: the PyTorch model, float32, eval mode.
        tokenizer: unused but for its vocabulary's special tokens; may be None.
        depths: the depths to record.
        seed: of the random token ids.
        half: also record how far PyTorch itself is off in this type, as `own` of every case;
            None where it overflows, which the graph does not.

    Returns:
        tensors by name, and the list of cases (see the bundle's format).

    Raises:
        ExportError: PyTorch's own logits are not finite.
    """
    recording = Recording()
    _record(recording, model, tokenizer, depths, seed)
    if half is not None:
        narrow = Recording(finite=False)
        _record(narrow, _narrowed(model, half), tokenizer, depths, seed)
        _add_own_errors(recording, narrow.tensors)
    return recording.tensors, recording.entries


def _record(
    recording: Recording,
    model: OuroborosForCausalLM,
    tokenizer: Any,
    depths: Sequence[int],
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    special = set(getattr(tokenizer, "all_special_ids", None) or [])
    ordinary = np.array([i for i in range(model.config.vocab_size) if i not in special])
    prompt = generator.choice(ordinary, (1, PREFILL + DECODE))
    batch = generator.choice(ordinary, (3, PADDED))
    for depth in depths:
        _record_decode(recording, model, prompt, depth)
        _record_batch(recording, model, batch, "padded", f"padded-d{depth:02}", [depth] * 3)
    top = max(depths)
    rows = [top, max(1, top // 2), 1]
    _record_batch(recording, model, batch, "mixed", f"mixed-d{top:02}", rows)
    wanted = sorted({depth for depth in GREEDY_DEPTHS if depth in depths} | {top})
    for depth in wanted:
        _record_greedy(recording, model, prompt[:, :PREFILL], depth)


def _narrowed(model: OuroborosForCausalLM, half: torch.dtype) -> OuroborosForCausalLM:
    """Returns a copy of the model in 16 bits, without a float32 copy on the way."""
    copies: dict[int, Any] = {}
    for value in model.parameters():
        copies[id(value)] = torch.nn.Parameter(value.to(half), requires_grad=False)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.to(half) if buffer.is_floating_point() else buffer
    return copy.deepcopy(model, copies)


def _add_own_errors(recording: Recording, narrow: dict[str, Array]) -> None:
    """Adds to every case the relative L2 of PyTorch's own half-precision outputs."""
    by_depth: dict[int, float] = {}
    for entry in recording.entries:
        name, errors = entry["name"], {}
        for output in (name for name in _OUTPUTS if f"{entry['name']}.out.{name}" in narrow):
            key = f"{name}.out.{output}"
            expected, found = recording.tensors[key], narrow[key]
            if not np.isfinite(found).all():
                errors[output] = math.inf
            elif output == "logits":
                rows = compare_logits(
                    expected.reshape(-1, expected.shape[-1]), found.reshape(-1, found.shape[-1])
                )
                errors[output] = float(rows.relative_l2.max())
            else:
                valid = recording.tensors.get(f"{name}.valid.{output}")
                errors[output] = compare(expected, found, valid).relative_l2
        by_depth[entry["depth"]] = max(by_depth.get(entry["depth"], 0.0), errors.get("logits", 0.0))
        # A greedy text of another precision may go elsewhere: its logits err as the others do.
        errors = errors or {"tokens": by_depth[entry["depth"]]}
        # JSON knows no infinity.
        entry["own"] = {key: None if math.isinf(own) else own for key, own in errors.items()}


_OUTPUTS = ("logits", "pool_sum", "new_key_values.recurrent.key", "new_key_values.recurrent.value")


def _record_decode(
    recording: Recording, model: OuroborosForCausalLM, prompt: Array, depth: int
) -> None:
    """Records a prompt in one call, then three tokens on its cache."""
    ids, rest = prompt[:, :PREFILL], prompt[:, PREFILL:]
    cache = OuroborosCache(model.config.num_layers)
    names = [f"prefill-d{depth:02}", f"decode-d{depth:02}"]
    index = _last(PREFILL, 1)
    parts = _run(model, ids, np.ones_like(ids), [depth], cache, index)
    parts["in"].update(_empty_past(model, 1, depth))
    recording.add(names[0], "prefill", depth, parts, positions=index[0].tolist())
    mask = np.ones((1, PREFILL + DECODE), dtype=np.int64)
    index = _last(DECODE, 1)
    parts = _run(model, rest, mask, [depth], cache, index)
    positions = (index[0] + PREFILL).tolist()
    recording.add(names[1], "decode", depth, parts, positions=positions, after=names[0])


def _record_batch(
    recording: Recording,
    model: OuroborosForCausalLM,
    ids: Array,
    kind: str,
    name: str,
    rows: list[int],
) -> None:
    """Records three rows: whole, padded on the left, padded on the right."""
    mask = np.ones_like(ids)
    mask[1, :3], mask[2, -2:] = 0, 0
    index = np.array([[PADDED - 1], [PADDED - 1], [PADDED - 3]])
    cache = OuroborosCache(model.config.num_layers)
    depth = max(rows)
    parts = _run(model, ids, mask, rows, cache, index)
    parts["in"].update(_empty_past(model, len(rows), depth))
    # What padding and steps past a row's depth leave in the caches is never read.
    steps = np.arange(depth)[None] < np.array(rows)[:, None]
    valid = steps[:, :, None, None, None] & (mask != 0)[:, None, None, :, None]
    parts["valid"] = {
        "new_key_values.recurrent.key": valid,
        "new_key_values.recurrent.value": valid,
        "pool_sum": steps[:, :, None, None],
    }
    recording.add(name, kind, depth, parts, positions=[PADDED - 1])


def _record_greedy(
    recording: Recording, model: OuroborosForCausalLM, prompt: Array, depth: int
) -> None:
    """Records PyTorch's greedy continuation and its two best logits at every token."""
    cache = OuroborosCache(model.config.num_layers)
    ids = torch.from_numpy(prompt)
    tokens, best = [], []
    for _ in range(GREEDY):
        logits = model(input_ids=ids, depth=depth, past_key_values=cache, use_cache=True).logits
        top = logits[0, -1].topk(2)
        tokens.append(int(top.indices[0]))
        best.append(top.values.float().numpy())
        ids = top.indices[:1][None]
    parts = {
        "in": {"prompt": prompt[0]},
        "out": {"tokens": np.array(tokens, dtype=np.int64), "top2": np.stack(best)},
    }
    recording.add(f"greedy-d{depth:02}", "greedy", depth, parts)


def _last(length: int, rows: int) -> Array:
    return np.tile(np.arange(length - PICKED, length), (rows, 1))


def _run(
    model: OuroborosForCausalLM,
    ids: Array,
    mask: Array,
    rows: list[int],
    cache: OuroborosCache,
    index: Array,
) -> dict[str, dict[str, Array]]:
    """Runs PyTorch on `ids` `[B, S]` and returns the graph's inputs and outputs."""
    depth, new, past = max(rows), ids.shape[1], cache.get_seq_length()
    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, past:]
    sums = _pool_sums(model, ids, mask, rows, cache, index)
    logits, pools = sums
    keys, values = [], []
    for step in range(depth):
        layer = cache.layers[model.config.num_layers + step]
        keys.append(layer.keys[:, :, -new:])
        values.append(layer.values[:, :, -new:])
    return {
        "in": {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": mask,
            "depth": np.array(depth, dtype=np.int64),
            "row_depth": np.array(rows, dtype=np.int64),
            "logit_index": index,
        },
        "out": {
            "logits": logits,
            "pool_sum": pools,
            "new_key_values.recurrent.key": torch.stack(keys, 1).float().numpy(),
            "new_key_values.recurrent.value": torch.stack(values, 1).float().numpy(),
        },
    }


def _pool_sums(
    model: OuroborosForCausalLM,
    ids: Array,
    mask: Array,
    rows: list[int],
    cache: OuroborosCache,
    index: Array,
) -> tuple[Array, Array]:
    """Runs the model; returns logits `[B, K, V]` and pooled sums `[B, depth, K, d]`.

    The cache keeps the sum at the last position only, so h before each step is recorded and
    summed here, apart from the model's own code.
    """
    past = {step: pool.clone() for step, pool in cache.pool.items()}
    hidden: list[torch.Tensor] = []
    handle = model.recurrent.register_forward_pre_hook(
        lambda module, inputs: hidden.append(inputs[0].float())
    )
    try:
        logits = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            depth=rows,
            past_key_values=cache,
            use_cache=True,
            logit_index=torch.from_numpy(index),
        ).logits
    finally:
        handle.remove()
    new = ids.shape[1]
    valid = torch.from_numpy(mask[:, -new:, None]).float()
    pools = []
    for step, h in enumerate(hidden):
        match model.config.pooling:
            case "causal":
                sums = (h * valid).cumsum(1) + past.get(step, 0.0)
            case "mean":
                sums = cache.pool[step].expand(-1, new, -1)
            case _:
                sums = h
        picked = torch.from_numpy(index)[..., None].expand(-1, -1, h.shape[-1])
        pools.append(sums.gather(1, picked))
    return logits.float().numpy(), torch.stack(pools, 1).numpy()


def _empty_past(model: OuroborosForCausalLM, batch: int, depth: int) -> dict[str, Array]:
    config = model.config
    kv, size = config.num_key_value_heads, config.head_dim

    def zeros(*shape: int) -> Array:
        return np.zeros(shape, dtype=np.float32)

    past = {
        f"past_key_values.{slot}.{kind}": zeros(batch, kv, 0, size)
        for slot in range(config.num_layers)
        for kind in ("key", "value")
    }
    for kind in ("key", "value"):
        past[f"past_key_values.recurrent.{kind}"] = zeros(batch, depth, kv, 0, size)
    past["past_pool_sum"] = zeros(batch, depth, config.hidden_size)
    return past
