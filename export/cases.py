"""Records reference cases: inputs of the graph and what PyTorch makes of them.

The recorded outputs are those of a float64 run, so that an engine's error can be held against the
error that PyTorch itself makes in the bundle's own precision, which is recorded beside them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.case_run import Parts, empty_past, run_case, take_apart
from export.errors import ExportError
from export.exact import exact_twin
from export.halt_scores import draw_thresholds, watch_scores
from ouroboros.model.cache import OuroborosCache
from ouroboros.model.modeling import OuroborosForCausalLM
from runtime.bundle.contract import (
    BUCKET,
    DEPTH_USED,
    LOGITS,
    POOL_SUM,
    PREFILL_CHUNK,
    RECURRENT,
    RECURRENT_OUTPUTS,
    new_name,
)
from runtime.parity.cases import Case, Result, recorded_results
from runtime.parity.comparison import NOT_FINITE, measure

PREFILL, DECODE, PADDED, GREEDY = 12, 3, 8, 16
PICKED = 3
TOGETHER = 16  # depths whose padded batches are run at once: each row has the deepest one's cache
GREEDY_DEPTHS = (1, 4, 8, 16)
LONG_DEPTH = 2  # more than one step, and cheap: it runs over hundreds of tokens
# Lengths of prompts and where the tokens after them end: a short one for small plans, one where the
# cache grows, three around the chunk in which an engine feeds a prompt.
LONG_SPANS = (
    (4, 8),
    (BUCKET - 3, BUCKET + 5),
    *((PREFILL_CHUNK + more, PREFILL_CHUNK + 7) for more in (-1, 0, 1)),
)

Array = NDArray[Any]


@dataclass(frozen=True)
class _Inputs:
    """The token ids that are recorded.

    Attributes:
        prompt: int64 `[1, PREFILL + DECODE]`.
        batch: int64 `[3, PADDED]`.
        long: int64 `[1, length]`, as long as LONG_SPANS where the model has the positions.
        greedy: by depth, PyTorch's greedy continuation of the prompt, int64 `[GREEDY]`.
        thresholds: of the halting score; none without a halter.
    """

    prompt: Array
    batch: Array
    long: Array
    greedy: dict[int, Array]
    thresholds: tuple[float, ...]


@torch.no_grad()
def record_cases(
    model: OuroborosForCausalLM,
    tokenizer: Any,
    depths: Sequence[int],
    seed: int | Sequence[int] = 0,
    half: torch.dtype | None = None,
) -> list[Case]:
    """Records prefill, decode, padded and mixed batches, greedy tokens, long and far positions.

    Args:
        model: the PyTorch model, float32, eval mode.
        tokenizer: unused but for its vocabulary's special tokens; may be None.
        depths: the depths to record.
        seed: of the random token ids.
        half: the 16-bit type whose own error in PyTorch bounds the engine's; None for float32.

    Returns:
        the cases, each after the one that it follows. `reference_error` of a case is the error of
        PyTorch at that precision against float64, by output; infinite where it overflows, which
        the graph does not.

    Raises:
        ExportError: PyTorch's own logits are not finite.
    """
    inputs = _draw_inputs(model, tokenizer, depths, seed)
    cases = []
    for case in _record(exact_twin(model), inputs, depths):
        _require_finite(case)
        cases.append(case)
    narrow = model if half is None else narrow_copy(model, half)
    # PyTorch's libraries sum in another order for three tokens than for fifteen, which with large
    # attention scores is a few times as exact: how it errs on the same text in one call counts too.
    joined = {} if model.config.pooling == "mean" else _run_joined(narrow, inputs.prompt, depths)
    return _add_reference_errors(cases, _record(narrow, inputs, depths), joined)


def _require_finite(case: Case) -> None:
    for name in (LOGITS, "top2"):
        if not np.isfinite(case.outputs.get(name, 0.0)).all():
            raise ExportError(
                f"the model itself gives NaN or infinity at depth {case.depth} ({case.kind}): a "
                "weight or alpha is broken",
                "convert or train it again",
            )


def _make_case(
    name: str,
    kind: str,
    depth: int,
    parts: Parts,
    positions: Sequence[int] = (),
    after: str | None = None,
) -> Case:
    """A case of what `parts` hold under `in`, `out` and `valid`."""
    inputs, outputs, valid = (
        {key: np.ascontiguousarray(value) for key, value in parts.get(part, {}).items()}
        for part in ("in", "out", "valid")
    )
    return Case(name, kind, depth, tuple(positions), after, inputs, outputs, valid)


def _draw_inputs(
    model: OuroborosForCausalLM, tokenizer: Any, depths: Sequence[int], seed: int | Sequence[int]
) -> _Inputs:
    generator = np.random.default_rng(seed)
    special = set(getattr(tokenizer, "all_special_ids", None) or [])
    ordinary = np.array([i for i in range(model.config.vocab_size) if i not in special])
    prompt = generator.choice(ordinary, (1, PREFILL + DECODE))
    batch = generator.choice(ordinary, (3, PADDED))
    length = min(LONG_SPANS[-1][1], model.config.max_position_embeddings)
    long = generator.choice(ordinary, (1, length))
    wanted = sorted({depth for depth in GREEDY_DEPTHS if depth in depths} | {max(depths)})
    greedy = _continue_greedily(model, prompt[:, :PREFILL], wanted)
    thresholds: list[float] = []
    if model.config.halting:
        call = _run_batch(model, batch, [[max(depths)] * 3])
        thresholds = draw_thresholds(watch_scores(model, lambda: next(call))[1])
    return _Inputs(prompt, batch, long, dict(zip(wanted, greedy, strict=True)), tuple(thresholds))


def _continue_greedily(
    model: OuroborosForCausalLM, prompt: Array, depths: Sequence[int]
) -> Sequence[Array]:
    """PyTorch's greedy continuation of one prompt, int64 `[GREEDY]` a depth."""
    cache = OuroborosCache(model.config.num_layers)
    ids = torch.from_numpy(np.repeat(prompt, len(depths), axis=0))
    tokens = []
    for _ in range(GREEDY):
        logits = model(
            input_ids=ids, depth=list(depths), past_key_values=cache, use_cache=True
        ).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(ids)
    return list(torch.cat(tokens, dim=1).numpy())


def _record(model: OuroborosForCausalLM, inputs: _Inputs, depths: Sequence[int]) -> Iterator[Case]:
    yield from _record_decode(model, inputs.prompt, depths)
    for first in range(0, len(depths), TOGETHER):
        rows = [[depth] * 3 for depth in depths[first : first + TOGETHER]]
        for depth, parts in _run_batch(model, inputs.batch, rows):
            yield _make_case(f"padded-d{depth:02}", "padded", depth, parts, [PADDED - 1])
    top, some = max(depths), min(depths, key=lambda depth: abs(depth - LONG_DEPTH))
    yield from _record_mixed(model, inputs, top)
    for number, threshold in enumerate(inputs.thresholds, start=1):
        for _, parts in _run_batch(model, inputs.batch, [[top, top, max(1, top - 1)]], threshold):
            name = f"halting-d{top:02}-{number}"
            yield _make_case(name, "halting", top, parts, [PADDED - 1])
    yield from _record_greedy(model, inputs.prompt[:, :PREFILL], inputs.greedy)
    yield _record_far(model, inputs.prompt[:, :PREFILL], some)
    yield _record_long(model, inputs.long, some)


def narrow_copy(model: OuroborosForCausalLM, half: torch.dtype) -> OuroborosForCausalLM:
    """Returns a copy of the model in 16 bits, without a float32 copy on the way.

    Rotary frequencies stay float32, as in a model that is loaded in 16 bits, and in the graph.
    """
    copies: dict[int, Any] = {}
    for value in model.parameters():
        copies[id(value)] = torch.nn.Parameter(value.to(half), requires_grad=False)
    for name, buffer in model.named_buffers():
        narrow = buffer.is_floating_point() and "rotary_emb." not in name
        copies[id(buffer)] = buffer.to(half) if narrow else buffer
    return copy.deepcopy(model, copies)


def _run_joined(
    model: OuroborosForCausalLM, prompt: Array, depths: Sequence[int]
) -> dict[str, Result]:
    """Results of the decode cases by their names, prompt and tokens run in one call."""
    whole, rows = np.repeat(prompt, len(depths), axis=0), [[depth] for depth in depths]
    cache, index = OuroborosCache(model.config.num_layers), _last(PREFILL + DECODE, len(depths))
    parts = run_case(model, whole, np.ones_like(whole), rows, cache, index)
    for kind in ("key", "value"):
        name = new_name(RECURRENT, kind)
        parts["out"][name] = parts["out"][name][..., -DECODE:, :]
    names = ((f"decode-d{depth:02}", depth, part) for depth, part in take_apart(model, parts, rows))
    return {name: Result(name, "decode", depth, part["out"]) for name, depth, part in names}


def _add_reference_errors(
    cases: list[Case], own: Iterator[Case], joined: dict[str, Result]
) -> list[Case]:
    """Adds to every case the errors of PyTorch's own outputs: of `own`, or `joined` if worse.

    Nothing of `own` is kept: it is recorded and measured a case at a time.
    """
    by_depth: dict[int, float] = {}
    judged: list[Case] = []
    for exact, case in zip(recorded_results(cases), own, strict=True):
        depth, errors = case.depth, dict[str, float]()
        if case.kind == "greedy":
            # Of a greedy text two logits a token are kept: they err as the other cases' do.
            errors["tokens"] = by_depth[depth]
        else:
            found = recorded_results([case])
            if case.name in joined:
                found.append(joined[case.name])
            for measured in (one for result in found for one in measure(result, exact)):
                if measured.note not in ("", NOT_FINITE):  # would pass for an overflow
                    raise ExportError(
                        f"{case.name}, {measured.output}: {measured.note}", "this is a bug"
                    )
                error = max(errors.get(measured.output, 0.0), measured.worst_relative_l2)
                errors[measured.output] = error
            by_depth[depth] = max(by_depth.get(depth, 0.0), errors.get(LOGITS, 0.0))
        judged.append(replace(cases[len(judged)], reference_error=errors))
    return judged


def _record_decode(
    model: OuroborosForCausalLM, prompt: Array, depths: Sequence[int]
) -> Iterator[Case]:
    """Records a prompt in one call, then three tokens on its cache; every depth is a row."""
    whole = np.repeat(prompt, len(depths), axis=0)
    rows = [[depth] for depth in depths]
    mask, cache = np.ones_like(whole), OuroborosCache(model.config.num_layers)
    first = _last(PREFILL, len(depths))
    parts = run_case(model, whole[:, :PREFILL], mask[:, :PREFILL], rows, cache, first)
    for depth, part in take_apart(model, parts, rows):
        part["in"].update(empty_past(model, 1, depth))
        positions = first[0].tolist()
        yield _make_case(f"prefill-d{depth:02}", "prefill", depth, part, positions)
    index = _last(DECODE, len(depths))
    parts = run_case(model, whole[:, PREFILL:], mask, rows, cache, index)
    for depth, part in take_apart(model, parts, rows):
        positions, after = (index[0] + PREFILL).tolist(), f"prefill-d{depth:02}"
        yield _make_case(f"decode-d{depth:02}", "decode", depth, part, positions, after)


def _record_mixed(model: OuroborosForCausalLM, inputs: _Inputs, top: int) -> Iterator[Case]:
    """Records three rows at depths of their own, then three tokens each on their caches."""
    rows, cache = [[top, max(1, top // 2), 1]], OuroborosCache(model.config.num_layers)
    name = f"mixed-d{top:02}"
    for _, parts in _run_batch(model, inputs.batch, rows, cache=cache):
        yield _make_case(name, "mixed", top, parts, [PADDED - 1])
    more = inputs.prompt[0, : 3 * DECODE].reshape(3, DECODE)
    mask = np.concatenate([_batch_mask(), np.ones_like(more)], axis=1)
    ran = run_case(model, more, mask, rows, cache, _last(DECODE, 3))
    for _, parts in take_apart(model, ran, rows):
        parts["valid"] = _valid(model, np.array(rows[0]), top, np.ones_like(more))
        positions = range(PADDED, PADDED + DECODE)
        yield _make_case(f"{name}-more", "mixed", top, parts, positions, name)


def _batch_mask() -> Array:
    """Of three rows: whole, padded on the left, padded on the right; int64 `[3, PADDED]`."""
    mask = np.ones((3, PADDED), np.int64)
    mask[1, :3], mask[2, -2:] = 0, 0
    return mask


def _valid(model: OuroborosForCausalLM, used: Array, depth: int, mask: Array) -> dict[str, Array]:
    """What counts of the caches: padding and steps that a row has not had are never read."""
    steps = np.arange(depth)[None] < used[:, None]
    entries = steps.repeat(model.config.recurrent_layers, axis=1)
    valid = entries[:, :, None, None, None] & (mask != 0)[:, None, None, :, None]
    return {**dict.fromkeys(RECURRENT_OUTPUTS, valid), POOL_SUM: steps[:, :, None, None]}


def _run_batch(
    model: OuroborosForCausalLM,
    ids: Array,
    rows: list[list[int]],
    threshold: float = 0.0,
    cache: OuroborosCache | None = None,
) -> Iterator[tuple[int, Parts]]:
    """Runs three rows, padded as `_batch_mask` says, once for each of `rows`."""
    mask = _batch_mask()
    index = np.array([[PADDED - 1], [PADDED - 1], [PADDED - 3]])
    if cache is None:  # an empty one counts as false
        cache = OuroborosCache(model.config.num_layers)
    many = [np.tile(one, (len(rows), 1)) for one in (ids, mask, index)]
    parts = run_case(model, many[0], many[1], rows, cache, many[2], threshold=threshold)
    for (depth, part), depths in zip(take_apart(model, parts, rows), rows, strict=True):
        part["in"].update(empty_past(model, len(depths), depth))
        used = part["out"].get(DEPTH_USED, np.array(depths))
        part["valid"] = _valid(model, used, depth, mask)
        yield depth, part


def _record_greedy(
    model: OuroborosForCausalLM, prompt: Array, greedy: dict[int, Array]
) -> Iterator[Case]:
    """Records, at every token of a greedy text, its logit and the best of the others."""
    cache = OuroborosCache(model.config.num_layers)
    depths = list(greedy)
    tokens = np.stack([greedy[depth] for depth in depths])
    logits: list[torch.Tensor] = []
    for ids in (np.repeat(prompt, len(depths), axis=0), tokens[:, :-1]):
        found = model(
            input_ids=torch.from_numpy(ids), depth=depths, past_key_values=cache, use_cache=True
        ).logits
        logits.append(found[:, -1:] if not logits else found)
    joined = torch.cat(logits, dim=1)
    index = torch.from_numpy(tokens)[..., None]
    others = joined.scatter(-1, index, -math.inf).amax(-1, keepdim=True)
    best = torch.cat([joined.gather(-1, index), others], dim=-1).float().numpy()
    for row, depth in enumerate(depths):
        parts = {
            "in": {"prompt": prompt[0]},
            "out": {"tokens": tokens[row], "top2": best[row]},
        }
        yield _make_case(f"greedy-d{depth:02}", "greedy", depth, parts)


def _record_far(model: OuroborosForCausalLM, ids: Array, depth: int) -> Case:
    """Records a prompt that ends at the model's last position."""
    count = min(ids.shape[1], model.config.max_position_embeddings)
    ids = ids[:, :count]
    last = model.config.max_position_embeddings - count
    cache = OuroborosCache(model.config.num_layers)
    index = np.arange(max(0, count - PICKED), count)[None]
    parts = run_case(model, ids, np.ones_like(ids), [[depth]], cache, index, first_position=last)
    (((_, part)),) = take_apart(model, parts, [[depth]])
    part["in"].update(empty_past(model, 1, depth))
    positions = (index[0] + last).tolist()
    return _make_case(f"far-d{depth:02}", "far", depth, part, positions)


def _record_long(model: OuroborosForCausalLM, ids: Array, depth: int) -> Case:
    """Records a text to be fed from prompts of several lengths, each up to the end of its span."""
    length = ids.shape[1]
    spans = [(start, min(end, length)) for start, end in LONG_SPANS if start < length]
    if model.config.pooling == "mean":  # frozen on the prompt: another prompt is another text
        spans = spans[1:2] or spans[:1]
        ids = ids[:, : spans[0][1]]
    places = sorted({place for start, end in spans for place in range(start - 1, end)})
    cache, mask = OuroborosCache(model.config.num_layers), np.ones_like(ids)
    first = spans[0][0] if model.config.pooling == "mean" else ids.shape[1]
    logits = []
    for start, end in ((0, first), (first, ids.shape[1])):
        picked = [place - start for place in places if start <= place < end]
        if picked:
            part, seen = ids[:, start:end], mask[:, :end]
            found = run_case(model, part, seen, [[depth]], cache, np.array([picked]))
            logits.append(found["out"][LOGITS])
    parts = {
        "in": {"tokens": ids[0], "spans": np.array(spans, dtype=np.int64)},
        "out": {LOGITS: np.concatenate(logits, axis=1)},
    }
    return _make_case(f"long-d{depth:02}", "long", depth, parts, places)


def _last(length: int, rows: int) -> Array:
    return np.tile(np.arange(length - PICKED, length), (rows, 1))
