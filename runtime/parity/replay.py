"""Replays recorded cases on an engine and measures each output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.memory import Backend
from runtime.bundle.manifest import Manifest
from runtime.decode.decoder import Decoder
from runtime.errors import EngineError
from runtime.parity.cases import Case
from runtime.parity.metrics import INFINITE, Difference, channel_error, compare, compare_logits

COMPARED = ("logits", "pool_sum", "new_key_values.recurrent.key", "new_key_values.recurrent.value")

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One output of one case, measured but not judged.

    Attributes:
        case: the case's name.
        kind: the case's kind.
        depth: steps the loop ran.
        output: the output's name.
        difference: errors over all compared entries.
        worst_relative_l2: of the worst position for logits; of caches and pooled sums that of
            all channels (`runtime.parity.metrics.channel_error`).
        kl: of the worst position, in nats; None but for logits.
        mean_kl: over the positions, likewise.
        argmax_agreement: share of positions whose best token is PyTorch's; None but for logits.
        divergences: (index, margin of PyTorch's two best logits) of every other position.
        position_errors: relative L2 by place in the sequence.
        reference_error: the same error of PyTorch itself in the bundle's precision.
        note: why nothing could be measured; empty where it could.
    """

    case: str
    kind: str
    depth: int
    output: str
    difference: Difference
    worst_relative_l2: float
    kl: float | None = None
    mean_kl: float | None = None
    argmax_agreement: float | None = None
    divergences: tuple[tuple[int, float], ...] = ()
    position_errors: tuple[tuple[int, float], ...] = ()
    reference_error: float = 0.0
    note: str = ""


def replay(backend: Backend, manifest: Manifest, cases: list[Case]) -> list[Measurement]:
    """Runs every case, in order.

    A case that cannot run or compares nothing gives a measurement with infinite errors and a note:
    it is never skipped.
    """
    wanted = {case.after for case in cases}
    kept: dict[str, dict[str, Array]] = {}
    measurements: list[Measurement] = []
    for case in cases:
        try:
            if case.kind in ("greedy", "long"):
                feed = _greedy if case.kind == "greedy" else _long
                measurements.append(feed(backend, manifest, case))
                continue
            outputs = run_in_groups(backend, _inputs(case, manifest, kept))
        except (EngineError, KeyError, ValueError, IndexError) as error:
            measurements.append(_unmeasured(case, "logits", _line(error)))
            continue
        if case.name in wanted:
            kept[case.name] = outputs
        measurements.extend(_measure(case, name, outputs) for name in COMPARED)
    return measurements


def run_in_groups(backend: Backend, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Runs the graph on a batch, in several calls where the backend takes fewer rows.

    A row's outputs depend on no other row. `depth` stays the whole batch's, so that every call
    has as many depth slots.

    Args:
        backend: what runs it.
        inputs: by the graph's names; all but `depth` have the batch first.

    Returns:
        Every output by name, the rows in order.

    Raises:
        EngineError: a run failed.
        KeyError: the inputs hold no row_depth.
    """
    rows, most = len(inputs["row_depth"]), backend.max_batch
    if most is None or rows <= most:
        return backend.run(inputs)
    groups = []
    for first in range(0, rows, most):
        part = slice(first, first + most)
        groups.append(
            backend.run(
                {name: one if name == "depth" else one[part] for name, one in inputs.items()}
            )
        )
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


def _inputs(case: Case, manifest: Manifest, kept: dict[str, dict[str, Array]]) -> dict[str, Array]:
    inputs = dict(case.inputs)
    if case.after is not None:
        if case.after not in kept:
            raise ValueError(f"the case before it, {case.after}, did not run")
        before = kept[case.after]
        for name, tensor in before.items():
            if name.startswith("new_key_values."):
                inputs.setdefault(name.replace("new_", "past_", 1), tensor)
        inputs.setdefault("past_pool_sum", np.ascontiguousarray(before["pool_sum"][:, :, -1]))
    depth, rows = inputs.get("depth"), inputs.get("row_depth")
    if depth is None or rows is None or depth.size != 1 or int(depth.reshape(-1)[0]) != case.depth:
        raise ValueError(f"its depth input is not the {case.depth} it is listed with")
    if case.kind != "mixed" and not bool(np.all(rows == case.depth)):
        raise ValueError(f"its row_depth input is not the {case.depth} it is listed with")
    if case.depth > manifest.depth.max:
        raise ValueError(f"its depth is above the bundle's {manifest.depth.max}")
    return inputs


def _measure(case: Case, output: str, outputs: dict[str, Array]) -> Measurement:
    reference, actual = case.outputs.get(output), outputs[output]
    if reference is None:
        return _unmeasured(case, output, "PyTorch's output was not recorded")
    if reference.shape != actual.shape:
        return _unmeasured(
            case, output, f"shape {list(actual.shape)}, PyTorch's {list(reference.shape)}"
        )
    valid = case.valid.get(output)
    try:
        chosen = np.broadcast_to(True if valid is None else valid.astype(bool), reference.shape)
    except ValueError:
        return _unmeasured(case, output, "its mask of valid entries has the wrong shape")
    if not chosen.any():
        return _unmeasured(case, output, "no entry is compared")
    difference = compare(reference, actual, chosen)
    if output != "logits" or not difference.finite:
        note = "" if difference.finite else "NaN or infinity"
        relative_l2 = float("inf") if note else channel_error(reference, actual, chosen)
        return Measurement(
            case.name,
            case.kind,
            case.depth,
            output,
            difference,
            relative_l2,
            reference_error=case.reference_error.get(output, 0.0),
            note=note,
        )
    rows = chosen.any(axis=-1)
    asked = np.broadcast_to(_positions(case, rows.shape[1]), rows.shape)[rows]
    return _measure_logits(case, difference, reference[rows], actual[rows], asked)


def _measure_logits(
    case: Case, difference: Difference, reference: Array, actual: Array, places: Array
) -> Measurement:
    """Measures finite logits `[n, V]` at `places` `[n]` of the sequence."""
    output = "logits"
    details = compare_logits(reference, actual)
    divergences = [
        (int(index), float(details.margin[index])) for index in np.flatnonzero(~details.agrees)
    ]
    return Measurement(
        case=case.name,
        kind=case.kind,
        depth=case.depth,
        output=output,
        difference=difference,
        worst_relative_l2=float(details.relative_l2.max()),
        kl=float(details.kl.max()),
        mean_kl=float(details.kl.mean()),
        argmax_agreement=float(details.agrees.mean()),
        divergences=tuple(divergences),
        position_errors=tuple(
            zip(places.tolist(), details.relative_l2.tolist(), strict=True),
        ),
        reference_error=case.reference_error.get(output, 0.0),
    )


def _positions(case: Case, count: int) -> Array:
    if len(case.positions) == count:
        return np.array(case.positions)
    return np.arange(count)


def _greedy(backend: Backend, manifest: Manifest, case: Case) -> Measurement:
    """PyTorch's greedy continuation, fed token by token through the engine's own cache."""
    prompt, tokens = case.inputs["prompt"].reshape(-1), case.outputs["tokens"].reshape(-1)
    reference = case.outputs["top2"].astype(np.float64)
    if tokens.size == 0 or prompt.size == 0 or reference.shape != (tokens.size, 2):
        raise ValueError("its recorded tokens and logits do not fit together")
    size = manifest.model.vocab_size
    if min(prompt.min(), tokens.min()) < 0 or max(prompt.max(), tokens.max()) >= size:
        raise ValueError("its recorded tokens are outside the vocabulary")
    decoder = Decoder(backend, manifest, [case.depth])
    logits = decoder.prefill([prompt])[0]
    found = np.empty_like(reference)
    divergences: list[tuple[int, float]] = []
    for index, token in enumerate(tokens):
        if index:
            logits = decoder.step(tokens[index - 1 : index])[0]
        if not np.isfinite(logits).all():
            return _unmeasured(case, "tokens", f"NaN or infinity at token {index}")
        best = int(logits.argmax())
        if best != token:
            divergences.append((index, float(reference[index, 0] - reference[index, 1])))
        found[index, 0] = logits[token]
        others = np.delete(logits, token)
        found[index, 1] = others.max()
    difference = compare(reference, found)
    errors = np.abs(found - reference).max(axis=1) / np.maximum(np.abs(reference).max(axis=1), 1e-9)
    return Measurement(
        case=case.name,
        kind=case.kind,
        depth=case.depth,
        output="tokens",
        difference=difference,
        worst_relative_l2=difference.relative_l2,
        argmax_agreement=1 - len(divergences) / len(tokens),
        divergences=tuple(divergences),
        position_errors=tuple((len(prompt) - 1 + i, float(e)) for i, e in enumerate(errors)),
        reference_error=case.reference_error.get("tokens", 0.0),
    )


def _long(backend: Backend, manifest: Manifest, case: Case) -> Measurement:
    """A long text, fed through the engine's own cache from prompts of several lengths.

    Some end near the chunk in which prompts are fed, some near where the cache grows; the tokens
    after a prompt come one by one. Prompts that a plan can't hold are left out.
    """
    tokens, spans = case.inputs["tokens"].reshape(-1), case.inputs["spans"]
    reference, places = case.outputs["logits"], np.array(case.positions)
    if reference.ndim != 3 or reference.shape[:2] != (1, places.size) or spans.shape[1:] != (2,):
        raise ValueError("its recorded tokens and logits do not fit together")
    size = manifest.model.vocab_size
    if tokens.min() < 0 or tokens.max() >= size or reference.shape[2] != size:
        raise ValueError("its recorded tokens are outside the vocabulary")
    row_of = {place: row for row, place in enumerate(places.tolist())}
    asked: list[int] = []
    found: list[Array] = []
    for prompt, end in spans.tolist():
        if end > backend.max_slots:
            continue
        decoder = Decoder(backend, manifest, [case.depth])
        found.append(decoder.prefill([tokens[:prompt]])[0])
        for place in range(prompt, end):
            found.append(decoder.step(tokens[place : place + 1])[0].copy())
        asked += range(prompt - 1, end)
    if not asked:
        raise ValueError(f"none of its prompts fits the {backend.max_slots} slots there are")
    expected, actual = reference[0][[row_of[place] for place in asked]], np.stack(found)
    difference = compare(expected, actual)
    if not difference.finite:
        return _unmeasured(case, "logits", "NaN or infinity")
    return _measure_logits(case, difference, expected, actual, np.array(asked))


def _unmeasured(case: Case, output: str, note: str) -> Measurement:
    return Measurement(
        case.name, case.kind, case.depth, output, INFINITE, float("inf"), note=note or "failed"
    )


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{text} is missing" if isinstance(error, KeyError) else text
