"""Runs recorded cases on a backend; what they give is compared elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.memory import Backend
from runtime.bundle.contract import (
    COMPARED_OUTPUTS,
    DEPTH,
    DEPTH_USED,
    LOGITS,
    NEW_PREFIX,
    PAST_POOL_SUM,
    POOL_SUM,
    ROW_DEPTH,
    ROWLESS,
)
from runtime.bundle.manifest import Manifest
from runtime.decode.decoder import Decoder
from runtime.errors import EngineError
from runtime.parity.cases import HALTING, UNFIT, Case, Result

Array = NDArray[Any]


def run(cases: Iterable[Case], backend: Backend, manifest: Manifest) -> list[Result]:
    """Runs every case, in order: one result a case.

    A case that cannot run gives a result that says why: it is never skipped. The recorded outputs
    are read of greedy cases only, whose tokens are fed one by one.

    Args:
        cases: each after the one whose keys and values are its past.
        backend: what runs the graph.
        manifest: of the graph's bundle.
    """
    cases = list(cases)
    wanted = {case.after for case in cases}
    kept: dict[str, dict[str, Array]] = {}
    results: list[Result] = []
    for case in cases:
        try:
            match case.kind:
                case "greedy":
                    result = _run_greedy(case, backend, manifest)
                case "long":
                    result = _run_long(case, backend, manifest)
                case _:
                    outputs = run_in_groups(backend, _inputs(case, manifest, kept))
                    if case.name in wanted:
                        kept[case.name] = outputs
                    compared = {name: outputs[name] for name in COMPARED_OUTPUTS}
                    if DEPTH_USED in outputs:
                        compared[DEPTH_USED] = outputs[DEPTH_USED]
                    result = Result(case.name, case.kind, case.depth, compared, case.positions)
        except (EngineError, KeyError, ValueError, IndexError) as error:
            failure = _line(error) or "failed"
            result = Result(case.name, case.kind, case.depth, failure=failure)
        results.append(result)
    return results


def run_in_groups(backend: Backend, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Runs the graph on a batch, in several calls where the backend takes fewer rows.

    A row's outputs depend on no other row. `depth` stays the whole batch's, so that every call
    has as many depth slots.

    Args:
        backend: what runs it.
        inputs: by the graph's names; all but those of ROWLESS have the batch first.

    Returns:
        Every output by name, the rows in order.

    Raises:
        EngineError: a run failed.
        KeyError: the inputs hold no row_depth.
    """
    rows, most = len(inputs[ROW_DEPTH]), backend.max_batch
    if most is None or rows <= most:
        return backend.run(inputs)
    groups = []
    for first in range(0, rows, most):
        part = slice(first, first + most)
        groups.append(
            backend.run(
                {name: one if name in ROWLESS else one[part] for name, one in inputs.items()}
            )
        )
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


def _inputs(case: Case, manifest: Manifest, kept: dict[str, dict[str, Array]]) -> dict[str, Array]:
    inputs = dict(case.inputs)
    _check_types(inputs, manifest)
    if case.after is not None:
        if case.after not in kept:
            raise ValueError(f"the case before it, {case.after}, did not run")
        before = kept[case.after]
        for name, tensor in before.items():
            if name.startswith(NEW_PREFIX):
                inputs.setdefault(name.replace("new_", "past_", 1), tensor)
        inputs.setdefault(PAST_POOL_SUM, np.ascontiguousarray(before[POOL_SUM][:, :, -1]))
    depth, rows = inputs.get(DEPTH), inputs.get(ROW_DEPTH)
    if depth is None or rows is None or depth.size != 1 or int(depth.reshape(-1)[0]) != case.depth:
        raise ValueError(f"its depth input is not the {case.depth} it is listed with")
    if case.kind not in ("mixed", HALTING) and not bool(np.all(rows == case.depth)):
        raise ValueError(f"its row_depth input is not the {case.depth} it is listed with")
    if case.depth > manifest.depth.max:
        raise ValueError(f"its depth is above the bundle's {manifest.depth.max}")
    for spec in manifest.graphs.onnx.inputs:
        if spec.name not in inputs:
            raise ValueError(f"its input {spec.name} is missing")
    return inputs


def _check_types(inputs: Mapping[str, Array], manifest: Manifest) -> None:
    """Refuses recorded inputs that are of no kind that the graph's are of.

    What is recorded is a fact, which no backend makes fit but in one way: of a graph that takes 16
    bits an input may be recorded in float32.
    """
    specs = {spec.name: spec for spec in manifest.graphs.onnx.inputs}
    for name, array in sorted(inputs.items()):
        if name not in specs:
            raise ValueError(f"the graph has no {name}")
        wanted, found = specs[name].dtype, array.dtype.name
        narrowed = found == "float32" and wanted in ("float16", "bfloat16")
        if found != wanted and not narrowed:
            raise ValueError(f"its input {name} is {found}, the graph's is {wanted}")
        if array.ndim != len(specs[name].shape):
            raise ValueError(f"its input {name} has {array.ndim} dimensions, not those it needs")


def _tokens(array: Array, manifest: Manifest) -> Array:
    """Recorded tokens [n], possibly none, checked."""
    tokens = _whole(array, "tokens").reshape(-1)
    if ((tokens < 0) | (tokens >= manifest.model.vocab_size)).any():
        raise ValueError("its recorded tokens are outside the vocabulary")
    return tokens


def _whole(array: Array, name: str) -> Array:
    if array.dtype != np.int64:
        raise ValueError(f"its recorded {name} are {array.dtype.name}, not int64")
    return array


def _run_greedy(case: Case, backend: Backend, manifest: Manifest) -> Result:
    """PyTorch's greedy continuation, fed token by token through the engine's own cache."""
    prompt = _tokens(case.inputs["prompt"], manifest)
    tokens = _tokens(case.outputs["tokens"], manifest)
    if tokens.size == 0 or prompt.size == 0:
        raise ValueError(UNFIT)
    decoder = Decoder(backend, manifest, [case.depth])
    logits = decoder.prefill([prompt])[0]
    best, top2 = np.empty(tokens.size, np.int64), np.full((tokens.size, 2), np.nan)
    for index, token in enumerate(tokens):
        if index:
            logits = decoder.step(tokens[index - 1 : index])[0]
        best[index] = logits.argmax()
        if np.isfinite(logits).all():
            top2[index] = logits[token], np.delete(logits, token).max()
    places = tuple(range(prompt.size - 1, prompt.size - 1 + tokens.size))
    return Result(case.name, case.kind, case.depth, {"tokens": best, "top2": top2}, places)


def _run_long(case: Case, backend: Backend, manifest: Manifest) -> Result:
    """A long text, fed through the engine's own cache from prompts of several lengths.

    Some end near the chunk in which prompts are fed, some near where the cache grows; the tokens
    after a prompt come one by one. Prompts that a plan can't hold are left out.
    """
    tokens = _tokens(case.inputs["tokens"], manifest)
    spans = _whole(case.inputs["spans"], "spans")
    if spans.shape[1:] != (2,):
        raise ValueError(UNFIT)
    asked: list[int] = []
    found: list[Array] = []
    for prompt, end in spans.tolist():
        if end > backend.max_slots:
            continue
        if not 1 <= prompt <= end <= tokens.size:
            raise ValueError(UNFIT)
        decoder = Decoder(backend, manifest, [case.depth])
        found.append(decoder.prefill([tokens[:prompt]])[0])
        for place in range(prompt, end):
            found.append(decoder.step(tokens[place : place + 1])[0].copy())
        asked += range(prompt - 1, end)
    if not asked:
        raise ValueError(f"none of its prompts fits the {backend.max_slots} slots there are")
    logits = {LOGITS: np.stack(found)[None]}
    return Result(case.name, case.kind, case.depth, logits, tuple(asked))


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{text} is missing" if isinstance(error, KeyError) else text
