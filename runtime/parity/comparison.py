"""Measures the results of one subject against those of another, output by output."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.contract import COMPARED_OUTPUTS, DEPTH_USED, LOGITS
from runtime.parity.cases import HALT_SCORES, UNFIT, Result
from runtime.parity.metrics import (
    INFINITE,
    Difference,
    channel_error,
    compare_arrays,
    compare_logits,
)

NOT_FINITE = "NaN or infinity"

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
        argmax_agreement: share of positions whose best token is the reference's; None but for
            logits and tokens.
        divergences: (index, margin of the reference's two best logits) of every other position.
        position_errors: relative L2 by place in the sequence.
        reference_error: the error that the reference is known to make in the subject's precision.
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


def measure_all(results: Iterable[Result], references: Iterable[Result]) -> list[Measurement]:
    """Measures every reference's outputs, in the references' order.

    What can't be compared gives a measurement with infinite errors and a note: it is never
    skipped. That holds for a reference without a result, and for a result without a reference.

    Args:
        results: to be measured, each of another case.
        references: what they should be, each of another case.
    """
    found = {result.case: result for result in results}
    measurements: list[Measurement] = []
    for reference in references:
        one = found.pop(reference.case, None)
        if one is None:
            measurements.append(unmeasured(reference, LOGITS, "there is no result of it"))
        else:
            measurements += measure(one, reference)
    measurements += [unmeasured(one, LOGITS, "there is no reference") for one in found.values()]
    return measurements


def measure(result: Result, reference: Result) -> list[Measurement]:
    """Measures one result against its reference: an entry an output.

    Args:
        result: to be measured.
        reference: of the same case; its masks and its own errors count.
    """
    if failure := result.failure or reference.failure:
        return [unmeasured(reference, LOGITS, failure)]
    if (result.kind, result.depth) != (reference.kind, reference.depth):
        other = f"{reference.kind} at depth {reference.depth}"
        note = f"{result.kind} at depth {result.depth}, its reference is {other}"
        return [unmeasured(reference, LOGITS, note)]
    match reference.kind:
        case "greedy":
            return [_measure_tokens(result, reference)]
        case "long":
            return [_measure_long(result, reference)]
        case _ if DEPTH_USED in reference.outputs:
            return _measure_halting(result, reference)
        case _:
            return [measure_output(result, reference, output) for output in COMPARED_OUTPUTS]


def _measure_halting(result: Result, reference: Result) -> list[Measurement]:
    """Measures the depths that rows have used, and the other outputs of those that agree.

    A row that halted at another step gives other states: it is judged by its depth alone.
    """
    expected, actual = (one.outputs.get(DEPTH_USED) for one in (reference, result))
    if expected is None or actual is None or expected.shape != actual.shape:
        return [unmeasured(reference, DEPTH_USED, "the result has not a depth for each row")]
    if expected.dtype != np.int64:
        note = f"its recorded depths are {expected.dtype.name}, not int64"
        return [unmeasured(reference, DEPTH_USED, note)]
    held = reference.outputs.get(HALT_SCORES)
    if held is not None and (held.ndim != 2 or len(held) != len(expected) or not held.shape[1]):
        note = "its recorded halting scores do not fit its depths"
        return [unmeasured(reference, DEPTH_USED, note)]
    differ = np.flatnonzero(expected != actual)
    # PyTorch's own runs are held against each other by their scores, an engine gives none.
    scores, own = (one.outputs.get(HALT_SCORES) for one in (reference, result))
    error = 0.0
    if scores is not None and own is not None:
        common = np.arange(scores.shape[1])[None] < np.minimum(expected, actual)[:, None]
        error = float(np.abs(scores - own)[common].max())
    where = np.minimum(expected, actual)[differ] - 1
    margins = np.full(len(differ), np.inf)
    if scores is not None and reference.threshold is not None:
        known = (where >= 0) & (where < scores.shape[1])  # a score was recorded of that step
        margins[known] = np.abs(scores[differ[known], where[known]] - reference.threshold)
    halting = _describe(
        reference,
        DEPTH_USED,
        compare_arrays(expected.astype(np.float64), actual.astype(np.float64)),
        error,
        divergences=tuple(zip(differ.tolist(), margins.tolist(), strict=True)),
    )
    if len(differ) == len(expected):
        return [halting]
    rest = (measure_output(result, reference, output, differ) for output in COMPARED_OUTPUTS)
    return [halting, *rest]


def measure_text(name: str, depth: int, actual: Array, reference: Array) -> Measurement:
    """Measures the logits of one text, which both subjects were fed token by token or at once.

    Args:
        name: of the text.
        depth: recurrences.
        actual: float [n, V], to be measured.
        reference: float [n, V], what they should be.
    """
    places = tuple(range(len(reference)))
    result, expected = (
        Result(name, "long", depth, {LOGITS: logits[None]}, places)
        for logits in (actual, reference)
    )
    (measurement,) = measure(result, expected)
    return measurement


def measure_output(
    result: Result, reference: Result, output: str, left_out: Array | None = None
) -> Measurement:
    """Measures one output of the graph.

    Args:
        result: holds the output to be measured.
        reference: holds what it should be.
        output: one of COMPARED_OUTPUTS.
        left_out: rows of the batch that are not compared, int64; None for none.
    """
    expected, actual = reference.outputs.get(output), result.outputs.get(output)
    if expected is None:
        return unmeasured(reference, output, "the reference holds no such output")
    if actual is None:
        return unmeasured(reference, output, "the result holds no such output")
    if expected.shape != actual.shape:
        shapes = f"shape {list(actual.shape)}, the reference's {list(expected.shape)}"
        return unmeasured(reference, output, shapes)
    valid = reference.valid.get(output)
    try:
        chosen = np.broadcast_to(True if valid is None else valid.astype(bool), expected.shape)
    except ValueError:
        return unmeasured(reference, output, "its mask of valid entries has the wrong shape")
    if left_out is not None and left_out.size:
        chosen = chosen.copy()
        chosen[left_out] = False
    if not chosen.any():
        return unmeasured(reference, output, "no entry is compared")
    difference = compare_arrays(expected, actual, chosen)
    if not difference.finite:
        return unmeasured(reference, output, NOT_FINITE)
    if output == LOGITS:
        rows = chosen.any(axis=-1)
        places = np.broadcast_to(_places(reference, rows.shape[1]), rows.shape)[rows]
        return _measure_logits(reference, difference, expected[rows], actual[rows], places)
    return _describe(reference, output, difference, channel_error(expected, actual, chosen))


def unmeasured(reference: Result, output: str, note: str) -> Measurement:
    """The measurement of an output that can't be compared; `note` says why."""
    return _describe(reference, output, INFINITE, float("inf"), note=note or "failed")


def _describe(
    reference: Result, output: str, difference: Difference, worst: float, **details: Any
) -> Measurement:
    """A measurement of an output of the reference's case; `details` are its other fields."""
    return Measurement(
        case=reference.case,
        kind=reference.kind,
        depth=reference.depth,
        output=output,
        difference=difference,
        worst_relative_l2=worst,
        reference_error=reference.reference_error.get(output, 0.0),
        **details,
    )


def _measure_logits(
    reference: Result, difference: Difference, expected: Array, actual: Array, places: Array
) -> Measurement:
    """Measures finite logits `[n, V]` at `places` `[n]` of the sequence."""
    details = compare_logits(expected, actual)
    return _describe(
        reference,
        LOGITS,
        difference,
        float(details.relative_l2.max()),
        kl=float(details.kl.max()),
        mean_kl=float(details.kl.mean()),
        argmax_agreement=float(details.agrees.mean()),
        divergences=tuple(
            (int(index), float(details.margin[index])) for index in np.flatnonzero(~details.agrees)
        ),
        position_errors=tuple(zip(places.tolist(), details.relative_l2.tolist(), strict=True)),
    )


def _places(result: Result, count: int) -> Array:
    return np.array(result.positions) if len(result.positions) == count else np.arange(count)


def _measure_tokens(result: Result, reference: Result) -> Measurement:
    """Measures a greedy text, of which each position has its token's logit and the best other."""
    tokens, found = (one.outputs.get("tokens") for one in (reference, result))
    expected, actual = (one.outputs.get("top2") for one in (reference, result))
    if tokens is None or expected is None or expected.shape != (tokens.size, 2) or not tokens.size:
        return unmeasured(reference, LOGITS, UNFIT)
    if found is None or actual is None or found.size != tokens.size:
        return unmeasured(reference, "tokens", f"the result has not its {tokens.size} tokens")
    if actual.shape != expected.shape:
        return unmeasured(reference, "tokens", "the result has not two logits for each token")
    tokens, found = tokens.reshape(-1), found.reshape(-1)
    broken = np.flatnonzero(~np.isfinite(actual).all(axis=1))
    if broken.size:
        return unmeasured(reference, "tokens", f"{NOT_FINITE} at token {broken[0]}")
    expected = expected.astype(np.float64)
    difference = compare_arrays(expected, actual)
    error = np.abs(actual - expected).max(axis=1)
    relative = error / np.maximum(np.abs(expected).max(axis=1), 1e-9)
    others = np.flatnonzero(found != tokens)
    margin = expected[:, 0] - expected[:, 1]
    places = _places(result, tokens.size)
    return _describe(
        reference,
        "tokens",
        difference,
        difference.relative_l2,
        argmax_agreement=1 - len(others) / tokens.size,
        divergences=tuple((int(index), float(margin[index])) for index in others),
        position_errors=tuple(zip(places.tolist(), relative.tolist(), strict=True)),
    )


def _measure_long(result: Result, reference: Result) -> Measurement:
    """Measures the logits of a text at the places that the result has, each as often as it has."""
    expected, actual = reference.outputs.get(LOGITS), result.outputs.get(LOGITS)
    places, asked = reference.positions, result.positions
    if expected is None or expected.ndim != 3 or expected.shape[:2] != (1, len(places)):
        return unmeasured(reference, LOGITS, UNFIT)
    if actual is None or actual.shape != (1, len(asked), expected.shape[2]) or not asked:
        note = f"the result has no logits for the {len(asked)} positions it names"
        return unmeasured(reference, LOGITS, note)
    row_of = {place: row for row, place in enumerate(places)}
    if unknown := sorted(set(asked) - set(places)):
        return unmeasured(reference, LOGITS, f"the reference has no logits at {unknown[0]}")
    rows = expected[0][[row_of[place] for place in asked]]
    difference = compare_arrays(rows, actual[0])
    if not difference.finite:
        return unmeasured(reference, LOGITS, NOT_FINITE)
    return _measure_logits(reference, difference, rows, actual[0], np.array(asked))
