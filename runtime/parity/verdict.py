"""The parity check: does an engine compute what PyTorch computed?

Both are held against PyTorch in float64. A float32 bundle passes where the error of every output is
at most 1e-5, or three times the error of PyTorch's own float32 where that is more, and the best
token is PyTorch's, ties apart, at every depth of its range.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runtime.backends.choose import open_backend
from runtime.bundle.manifest import Manifest
from runtime.bundle.reader import CASES_NAME, open_bundle
from runtime.errors import EngineError
from runtime.parity.cases import EVERY_DEPTH, REQUIRED, Case, load_cases
from runtime.parity.replay import Measurement, replay

PASS, FAIL, AMBIGUOUS = "PASS", "FAIL", "AMBIGUOUS"
# A manifest may ask for less, never allow more.
RELATIVE_L2 = 1e-5
FAST_KL = 1e-3  # nats, mean over the recorded logits
# An engine may be so many times as far off as PyTorch itself. In 16 bits both round at the same
# places, so that this holds case by case. In float32 the order of sums decides, which PyTorch's
# libraries choose by the shape: the factor is on the worst of an output's cases.
FLOAT32_ERRORS, HALF_ERRORS = 3.0, 2.0
EXACT_LEVEL = 1  # MatMulNBits in float32


@dataclasses.dataclass(frozen=True)
class ParityRow:
    """One case x depth x output, judged.

    Attributes:
        measurement: what was measured.
        bound: on its relative L2 error.
        verdict: PASS, FAIL or AMBIGUOUS (it differs only where PyTorch's best tokens tie, or
            PyTorch itself overflows at the bundle's precision, and so gives no bound).
        reason: why it is not PASS; empty where it is.
        ties: positions whose best token differs within a tie.
        first_divergence: index of the first position whose best token differs, or None.
        margin: between PyTorch's two best logits there, or None.
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
            "max_abs": _number(measurement.difference.max_abs),
            "mean_abs": _number(measurement.difference.mean_abs),
            "relative_l2": _number(measurement.worst_relative_l2),
            "reference_error": _number(measurement.reference_error),
            "bound": _number(self.bound),
            "cosine": _number(measurement.difference.cosine),
            "kl": _number(measurement.kl),
            "argmax_agreement": _number(measurement.argmax_agreement),
            "first_divergence": self.first_divergence,
            "margin": _number(self.margin),
            "ties": self.ties,
            "verdict": self.verdict,
            "reason": self.reason or measurement.note,
        }


@dataclasses.dataclass(frozen=True)
class FastReport:
    """What the arithmetic that a quantised bundle ships with adds to its exact arithmetic.

    Attributes:
        accuracy_level: ONNX Runtime's, for MatMulNBits.
        mean_kl: in nats, of PyTorch's distribution to the engine's, over all recorded logits.
        worst_kl: of the worst position.
        bound: on mean_kl.
        argmax_agreement: share of positions whose best token is PyTorch's.
    """

    accuracy_level: int
    mean_kl: float
    worst_kl: float
    bound: float
    argmax_agreement: float

    @property
    def verdict(self) -> str:
        """PASS or FAIL."""
        return PASS if self.mean_kl <= self.bound else FAIL


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """The outcome of a parity check.

    Attributes:
        verdict: PASS, FAIL or AMBIGUOUS.
        bound: on the relative L2 error, where PyTorch's own error does not ask for more.
        depths: depths that were checked.
        rows: one a case x output.
        problems: what is missing from the recording, each a line; any of them is a FAIL.
        tie_margin: two best logits closer than this count as a tie.
        bundle: the bundle's directory.
        backend: what it ran on: cpu, cuda or trt.
        fast: of a quantised bundle that ships with faster arithmetic than was compared.
    """

    verdict: str
    bound: float
    depths: tuple[int, ...]
    rows: tuple[ParityRow, ...]
    problems: tuple[str, ...]
    tie_margin: float
    bundle: str
    backend: str
    fast: FastReport | None = None

    @property
    def worst_relative_l2(self) -> float:
        """The worst relative L2 error of the logits, infinite where nothing was measured."""
        logits = [r.measurement for r in self.rows if r.measurement.output == "logits"]
        return max((m.worst_relative_l2 for m in logits), default=float("inf"))

    @property
    def reference_error(self) -> float:
        """The worst of PyTorch's own errors of the logits, in the bundle's precision."""
        logits = [r.measurement for r in self.rows if r.measurement.output == "logits"]
        return max((m.reference_error for m in logits), default=float("inf"))

    @property
    def allowed(self) -> float:
        """The largest error of the logits that passes."""
        return max((r.bound for r in self.rows if r.measurement.output == "logits"), default=0.0)

    @property
    def ambiguous(self) -> int:
        """Positions whose best token differs within a tie."""
        return sum(row.ties for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "verdict": self.verdict,
            "bound": self.bound,
            "worst_relative_l2": _number(self.worst_relative_l2),
            "reference_error": _number(self.reference_error),
            "allowed": _number(self.allowed),
            "depths": list(self.depths),
            "ambiguous": self.ambiguous,
            "tie_margin": _number(self.tie_margin),
            "problems": list(self.problems),
            "bundle": self.bundle,
            "backend": self.backend,
            "fast": None if self.fast is None else dataclasses.asdict(self.fast),
            "rows": [row.to_json() for row in self.rows],
        }

    def write_json(self, file: Path) -> None:
        """Writes the report to a file."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        file.write_text(text, encoding="utf-8")


def check_bundle(
    path: str | os.PathLike[str],
    backend: str = "auto",
    cases: Sequence[Case] | None = None,
    depths: Iterable[int] | None = None,
    threads: int | None = None,
) -> ParityReport:
    """Replays recorded cases on a bundle and compares with what PyTorch gave.

    A quantised bundle is compared in exact arithmetic, with a PyTorch model of the same
    dequantised weights; what its faster arithmetic adds is measured apart, in KL.

    Args:
        path: the bundle's directory; it is verified first.
        backend: as for `Engine.open`.
        cases: fresh ones, from `runtime.parity.cases.make_cases`; None takes the bundle's own.
        depths: depths that must have cases; None means all of the bundle's range.
        threads: as for `Engine.open`.

    Raises:
        BundleError: the bundle is not whole.
        EngineError: an unknown backend.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    wanted = tuple(range(manifest.depth.min, manifest.depth.max + 1) if depths is None else depths)
    if not wanted:
        raise EngineError("no depths to check; give at least one")
    problems: list[str] = []
    if cases is None:
        if CASES_NAME in manifest.files:
            cases = load_cases(bundle.file(CASES_NAME))
        else:
            cases = []
            problems.append(f"the bundle holds no {CASES_NAME}")
    problems += missing_cases(cases, wanted)
    opened = open_backend(bundle, backend, threads, EXACT_LEVEL)
    measurements = replay(opened, manifest, list(cases))
    bound = min(manifest.parity.relative_l2, RELATIVE_L2)
    rows, tie_margin = judge(measurements, bound, half=manifest.cache_dtype != "float32")
    fast = None
    level = EXACT_LEVEL if manifest.quantization is None else manifest.quantization.accuracy_level
    if opened.name == "cpu" and level != EXACT_LEVEL:  # a GPU has no levels
        opened = open_backend(bundle, backend, threads)
        fast = _measure_fast(replay(opened, manifest, list(cases)), manifest)
    verdicts = {row.verdict for row in rows} | ({fast.verdict} if fast else set())
    failed = bool(problems) or FAIL in verdicts or not rows
    verdict = FAIL if failed else AMBIGUOUS if AMBIGUOUS in verdicts else PASS
    return ParityReport(
        verdict, bound, wanted, rows, tuple(problems), tie_margin, str(path), opened.name, fast
    )


def _measure_fast(measurements: Sequence[Measurement], manifest: Manifest) -> FastReport:
    logits = [m for m in measurements if m.output == "logits"]
    known = [m for m in logits if m.mean_kl is not None and m.argmax_agreement is not None]
    whole = bool(known) and len(known) == len(logits)
    mean = sum(m.mean_kl or 0.0 for m in known) / len(known) if whole else float("inf")
    quantization = manifest.quantization
    return FastReport(
        accuracy_level=0 if quantization is None else quantization.accuracy_level,
        mean_kl=mean,
        worst_kl=max((m.kl or 0.0 for m in known), default=float("inf")),
        bound=min(manifest.parity.kl or FAST_KL, FAST_KL),
        argmax_agreement=min((m.argmax_agreement or 0.0 for m in known), default=0.0),
    )


def missing_cases(cases: Iterable[Case], depths: Iterable[int]) -> list[str]:
    """Lines naming the kinds and depths that a recording lacks."""
    found: dict[str, set[int]] = {}
    for case in cases:
        found.setdefault(case.kind, set()).add(case.depth)
    lines = []
    for kind in REQUIRED:
        if kind not in found:
            lines.append(f"no {kind} case is recorded")
        elif kind in EVERY_DEPTH:
            lacking = [depth for depth in depths if depth not in found[kind]]
            if lacking:
                lines.append(f"no {kind} case at depth {', '.join(map(str, lacking))}")
    return lines


def judge(
    measurements: Sequence[Measurement], bound: float, half: bool = False
) -> tuple[tuple[ParityRow, ...], float]:
    """Turns measurements into verdicts.

    Args:
        measurements: from `replay`.
        bound: on the error; PyTorch's own error may ask for more.
        half: the bundle computes in 16 bits.

    Returns:
        A row a measurement, and the margin below which PyTorch's two best logits tie: twice the
        largest absolute error of any logit that is within its bound.
    """
    bounds = _bounds(measurements, bound, half)
    errors = [
        one.difference.max_abs
        for one, most in zip(measurements, bounds, strict=True)
        if one.output in ("logits", "tokens") and one.worst_relative_l2 <= most
    ]
    tie_margin = 2 * max(errors, default=0.0)
    rows = (_judge_one(m, b, tie_margin) for m, b in zip(measurements, bounds, strict=True))
    return tuple(rows), tie_margin


def _bounds(measurements: Sequence[Measurement], bound: float, half: bool) -> list[float]:
    own = [one.reference_error for one in measurements]
    if half:
        return [max(bound, HALF_ERRORS * error) for error in own]
    worst: dict[str, float] = {}
    for one in measurements:
        if one.reference_error < float("inf"):
            worst[one.output] = max(worst.get(one.output, 0.0), one.reference_error)
    return [
        max(bound, FLOAT32_ERRORS * worst[one.output]) if error < float("inf") else error
        for one, error in zip(measurements, own, strict=True)
    ]


def _judge_one(measurement: Measurement, bound: float, tie_margin: float) -> ParityRow:
    index, margin = measurement.divergences[0] if measurement.divergences else (None, None)
    beyond = [d for d in measurement.divergences if not d[1] < tie_margin]
    ties = len(measurement.divergences) - len(beyond)
    verdict, reason = PASS, ""
    if measurement.note:
        verdict, reason = FAIL, measurement.note
    elif not measurement.worst_relative_l2 <= bound:  # also catches a NaN
        verdict, reason = FAIL, f"relative L2 {measurement.worst_relative_l2:.3e} > {bound:.3e}"
    elif bound == float("inf"):
        verdict, reason = AMBIGUOUS, "finite, but PyTorch itself overflows here: nothing to compare"
    elif beyond:
        verdict, reason = FAIL, f"another token at {beyond[0][0]}, margin {beyond[0][1]:.2e}"
    elif ties:
        verdict, reason = AMBIGUOUS, f"{ties} tied"
    return ParityRow(measurement, bound, verdict, reason, ties, index, margin)


def _number(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None
