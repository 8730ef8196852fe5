"""Is one subject's result another's? Bounds, ties and the verdict on what was measured.

Nothing here runs anything. A bundle is held against PyTorch in float64: it passes where the error
of every output is at most 1e-5, or three times the error of PyTorch's own float32 where that is
more, and the best token is PyTorch's, ties apart. Two backends, precisions or releases are compared
alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from runtime.bundle.contract import DEPTH_USED, LOGITS
from runtime.parity.cases import Result
from runtime.parity.comparison import Measurement, measure_all

PASS, FAIL, AMBIGUOUS = "PASS", "FAIL", "AMBIGUOUS"
RELATIVE_L2 = 1e-5
# A subject may be so many times as far off as its reference is known to be. In 16 bits both round
# at the same places, so that this holds case by case. In float32 the order of sums decides, which
# PyTorch's libraries choose by the shape: the factor is on the worst of an output's cases.
FLOAT32_ERRORS, HALF_ERRORS = 3.0, 2.0

Divergence = tuple[int, float]
"""Index of a position whose best token differs, and the margin of the reference's two best."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a result may differ by.

    Attributes:
        relative_l2: on the error of every output; the reference's own error may ask for more.
        half: the subject computes in 16 bits.
    """

    relative_l2: float = RELATIVE_L2
    half: bool = False


@dataclasses.dataclass(frozen=True)
class ParityRow:
    """One case x depth x output, judged.

    Attributes:
        measurement: what was measured.
        bound: on its relative L2 error.
        verdict: PASS, FAIL or AMBIGUOUS (it differs only where the reference's best tokens tie, or
            PyTorch itself overflows at the bundle's precision, and so gives no bound).
        reason: why it is not PASS; empty where it is.
        ties: positions whose best token differs within a tie.
        first_divergence: index of the first position whose best token differs, or None.
        margin: between the reference's two best logits there, or None.
    """

    measurement: Measurement
    bound: float
    verdict: str
    reason: str
    ties: int
    first_divergence: int | None
    margin: float | None

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values; an error that is not finite becomes null."""
        measurement = self.measurement
        return {
            "case": measurement.case,
            "kind": measurement.kind,
            "depth": measurement.depth,
            "output": measurement.output,
            "max_abs": finite_or_none(measurement.difference.max_abs),
            "mean_abs": finite_or_none(measurement.difference.mean_abs),
            "relative_l2": finite_or_none(measurement.worst_relative_l2),
            "reference_error": finite_or_none(measurement.reference_error),
            "bound": finite_or_none(self.bound),
            "cosine": finite_or_none(measurement.difference.cosine),
            "kl": finite_or_none(measurement.kl),
            "argmax_agreement": finite_or_none(measurement.argmax_agreement),
            "first_divergence": self.first_divergence,
            "margin": finite_or_none(self.margin),
            "ties": self.ties,
            "verdict": self.verdict,
            "reason": self.reason or measurement.note,
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The outcome of comparing two subjects' results.

    Attributes:
        verdict: PASS, FAIL or AMBIGUOUS.
        bound: on the relative L2 error, where the reference's own error does not ask for more.
        rows: one a case x output.
        tie_margin: two best logits closer than this count as a tie.
    """

    verdict: str
    bound: float
    rows: tuple[ParityRow, ...]
    tie_margin: float

    @property
    def worst_relative_l2(self) -> float:
        """The worst relative L2 error of the logits, infinite where nothing was measured."""
        logits = [r.measurement for r in self.rows if r.measurement.output == LOGITS]
        return max((m.worst_relative_l2 for m in logits), default=float("inf"))

    @property
    def reference_error(self) -> float:
        """The worst of the reference's own errors of the logits."""
        logits = [r.measurement for r in self.rows if r.measurement.output == LOGITS]
        return max((m.reference_error for m in logits), default=float("inf"))

    @property
    def allowed(self) -> float:
        """The largest error of the logits that passes."""
        return max((r.bound for r in self.rows if r.measurement.output == LOGITS), default=0.0)

    @property
    def ambiguous(self) -> int:
        """Positions whose best token differs within a tie."""
        return sum(row.ties for row in self.rows)


def compare(results: Iterable[Result], references: Iterable[Result], bounds: Bounds) -> Comparison:
    """Compares a subject's results with those of a reference, which are taken for right.

    Args:
        results: of a backend, a precision or a release, from `runtime.parity.replay.run`.
        references: of the same cases, PyTorch's (`runtime.parity.cases.recorded_results`) or of
            another run; their masks and their own errors count. One without a result fails.
        bounds: what they may differ by.
    """
    rows, tie_margin = judge(measure_all(results, references), bounds.relative_l2, bounds.half)
    verdict = join_verdicts(row.verdict for row in rows)
    return Comparison(verdict, bounds.relative_l2, rows, tie_margin)


def join_verdicts(verdicts: Iterable[str]) -> str:
    """The verdict of a whole: FAIL where a part fails or there is none, AMBIGUOUS where one is."""
    found = set(verdicts)
    return FAIL if FAIL in found or not found else AMBIGUOUS if AMBIGUOUS in found else PASS


def split_ties(
    divergences: Sequence[Divergence], tie_margin: float
) -> tuple[list[Divergence], list[Divergence]]:
    """Parts other tokens that are ties from those that are not.

    Args:
        divergences: of a Measurement.
        tie_margin: the reference's two best logits tie where they are closer: twice the largest
            absolute error of a logit, which may lift one and lower the other.

    Returns:
        the ties and the others, in order.
    """
    ties = [one for one in divergences if one[1] < tie_margin]
    return ties, [one for one in divergences if not one[1] < tie_margin]  # a NaN is no tie


def judge(
    measurements: Sequence[Measurement], bound: float, half: bool = False
) -> tuple[tuple[ParityRow, ...], float]:
    """Turns measurements into verdicts.

    Args:
        measurements: of one subject.
        bound: on the error; the reference's own error may ask for more.
        half: the subject computes in 16 bits.

    Returns:
        A row a measurement, and the margin below which the reference's two best logits tie: twice
        the largest absolute error of any logit that is within its bound, if it has one.
    """
    bounds = _bounds(measurements, bound, half)
    errors = [
        one.difference.max_abs
        for one, most in zip(measurements, bounds, strict=True)
        if one.output in (LOGITS, "tokens") and one.worst_relative_l2 <= most < float("inf")
    ]
    tie_margin = 2 * max(errors, default=0.0)
    rows = (
        # A depth ties where the halting score is as near to the threshold as it may be off.
        _judge_one(m, b, b if m.output == DEPTH_USED else tie_margin)
        for m, b in zip(measurements, bounds, strict=True)
    )
    return tuple(rows), tie_margin


def _bounds(measurements: Sequence[Measurement], bound: float, half: bool) -> list[float]:
    """The bound of each measurement, by the worst that the reference makes of its like.

    The error of one case is one draw: a decode case compares a single row of logits, and how far
    rounding throws it differs threefold between depths, in the reference as in the subject. So the
    reference's error is the largest of the same output: in 16 bits, where some kinds of case come
    near to overflow, of the same kind of case too, at whatever depth.
    """
    factor = HALF_ERRORS if half else FLOAT32_ERRORS
    worst: dict[tuple[str, str], float] = {}
    for one in measurements:
        if one.reference_error < float("inf"):
            key = _like(one, half)
            worst[key] = max(worst.get(key, 0.0), one.reference_error)
    return [
        max(bound, factor * worst[_like(one, half)])
        if one.reference_error < float("inf")
        else one.reference_error
        for one in measurements
    ]


def _like(measurement: Measurement, half: bool) -> tuple[str, str]:
    return (measurement.kind if half else "", measurement.output)


def _judge_one(measurement: Measurement, bound: float, tie_margin: float) -> ParityRow:
    index, margin = measurement.divergences[0] if measurement.divergences else (None, None)
    ties, beyond = split_ties(measurement.divergences, tie_margin)
    verdict, reason = PASS, ""
    if measurement.note:
        verdict, reason = FAIL, measurement.note
    elif not measurement.worst_relative_l2 <= bound:  # also catches a NaN
        verdict, reason = FAIL, f"relative L2 {measurement.worst_relative_l2:.3e} > {bound:.3e}"
    elif bound == float("inf"):
        verdict, reason = AMBIGUOUS, "finite, but PyTorch itself overflows here: nothing to compare"
    elif beyond:
        other = "another depth in row" if measurement.output == DEPTH_USED else "another token at"
        verdict, reason = FAIL, f"{other} {beyond[0][0]}, margin {beyond[0][1]:.2e}"
    elif ties:
        verdict, reason = AMBIGUOUS, f"{len(ties)} tied"
    return ParityRow(measurement, bound, verdict, reason, len(ties), index, margin)


def finite_or_none(value: float | None) -> float | None:
    """What JSON takes for a number that may be infinite or missing."""
    return value if value is not None and abs(value) < float("inf") else None
