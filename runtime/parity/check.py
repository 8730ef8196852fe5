"""The parity check: does a bundle compute what PyTorch computed?

The bundle's recorded cases, which cover every depth of its range, are loaded, run and compared with
PyTorch in float64.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runtime.backends.choose import check_choice, open_backend, require_backend
from runtime.bundle.contract import LOGITS
from runtime.bundle.manifest import Manifest
from runtime.bundle.reader import CASES_NAME, open_bundle
from runtime.errors import EngineError
from runtime.parity.cases import (
    EVERY_DEPTH,
    HALTING,
    REQUIRED,
    Case,
    load_cases,
    recorded_results,
)
from runtime.parity.comparison import Measurement, measure_all
from runtime.parity.replay import run
from runtime.parity.verdict import (
    FAIL,
    PASS,
    RELATIVE_L2,
    Bounds,
    Comparison,
    ParityRow,
    compare,
    finite_or_none,
    join_verdicts,
)

FAST_KL = 1e-3  # nats, mean over the recorded logits
EXACT_LEVEL = 1  # MatMulNBits in float32


@dataclasses.dataclass(frozen=True)
class FastReport:
    """What the arithmetic that a quantised bundle ships with adds to its exact arithmetic.

    Attributes:
        accuracy_level: ONNX Runtime's, for MatMulNBits.
        mean_kl: in nats, of PyTorch's distribution to the engine's, each case counted once.
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

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values: null for what could not be measured."""
        fields = dataclasses.asdict(self)
        return fields | {name: finite_or_none(fields[name]) for name in ("mean_kl", "worst_kl")}


@dataclasses.dataclass(frozen=True)
class ParityReport(Comparison):
    """The outcome of a parity check: a comparison with PyTorch, and what was checked.

    Attributes:
        depths: depths that were checked.
        problems: what is missing from the recording, each a line; any of them is a FAIL.
        bundle: the bundle's directory.
        backend: what it ran on: cpu, cuda or trt.
        fast: of a quantised bundle that ships with faster arithmetic than was compared.
    """

    depths: tuple[int, ...]
    problems: tuple[str, ...]
    bundle: str
    backend: str
    fast: FastReport | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "verdict": self.verdict,
            "bound": self.bound,
            "worst_relative_l2": finite_or_none(self.worst_relative_l2),
            "reference_error": finite_or_none(self.reference_error),
            "allowed": finite_or_none(self.allowed),
            "depths": list(self.depths),
            "ambiguous": self.ambiguous,
            "tie_margin": finite_or_none(self.tie_margin),
            "problems": list(self.problems),
            "bundle": self.bundle,
            "backend": self.backend,
            "fast": None if self.fast is None else self.fast.to_json(),
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
    """Runs recorded cases on a bundle and compares with what PyTorch gave.

    A quantised bundle is compared in exact arithmetic, with a PyTorch model of the same
    dequantised weights; what its faster arithmetic adds is measured apart, in KL.

    Args:
        path: the bundle's directory; it is verified first.
        backend: as for `Engine.open`.
        cases: fresh ones, from `export.record_cases`; None takes the bundle's own.
        depths: depths that must have cases; None means all of the bundle's range.
        threads: as for `Engine.open`.

    Raises:
        BundleError: the bundle is not whole.
        EngineError: an unknown backend.
    """
    check_choice(backend, threads)  # of the arguments alone
    bundle = open_bundle(path, lambda manifest: require_backend(manifest, backend, threads))
    manifest = bundle.manifest
    wanted = tuple(range(manifest.depth.min, manifest.depth.max + 1) if depths is None else depths)
    if not wanted:
        raise EngineError("no depths to check", "give at least one")
    problems: list[str] = []
    if cases is None:
        if CASES_NAME in manifest.files:
            cases = load_cases(bundle.file(CASES_NAME))
        else:
            cases = []
            problems.append(f"the bundle holds no {CASES_NAME}")
    problems += missing_cases(cases, wanted, manifest.model.halting)
    opened = open_backend(bundle, backend, threads, EXACT_LEVEL)
    references = recorded_results(cases)
    compared = compare(run(cases, opened, manifest), references, bounds_of(manifest))
    problems += missing_bounds(compared.rows)
    fast = None
    level = EXACT_LEVEL if manifest.quantization is None else manifest.quantization.accuracy_level
    if opened.name == "cpu" and level != EXACT_LEVEL:  # a GPU has no levels
        del opened  # its weights would be there twice
        opened = open_backend(bundle, backend, threads)
        fast = _judge_fast(measure_all(run(cases, opened, manifest), references), manifest)
    verdicts = [compared.verdict, *([fast.verdict] if fast else []), *([FAIL] if problems else [])]
    return ParityReport(
        verdict=join_verdicts(verdicts),
        bound=compared.bound,
        rows=compared.rows,
        tie_margin=compared.tie_margin,
        depths=wanted,
        problems=tuple(problems),
        bundle=str(path),
        backend=opened.name,
        fast=fast,
    )


def bounds_of(manifest: Manifest) -> Bounds:
    """What a bundle may differ from PyTorch by; its manifest may ask for less, never allow more."""
    bound = min(manifest.parity.relative_l2, RELATIVE_L2)
    return Bounds(bound, half=manifest.cache_dtype != "float32")


def _judge_fast(measurements: Sequence[Measurement], manifest: Manifest) -> FastReport:
    logits = [m for m in measurements if m.output == LOGITS]
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


def missing_bounds(rows: Sequence[ParityRow]) -> list[str]:
    """A line where PyTorch overflows in every case, so that no number of the engine's is bounded.

    Args:
        rows: of the comparison.
    """
    logits = [row for row in rows if row.measurement.output == LOGITS]
    if not logits or any(row.bound < float("inf") for row in logits):
        return []
    return ["a case in which PyTorch itself does not overflow: nothing was compared"]


def missing_cases(cases: Iterable[Case], depths: Iterable[int], halting: bool = False) -> list[str]:
    """Lines naming the kinds and depths that a recording lacks.

    Args:
        cases: that there are.
        depths: each needs a case of some kinds.
        halting: the model has a halter.
    """
    found: dict[str, set[int]] = {}
    for case in cases:
        found.setdefault(case.kind, set()).add(case.depth)
    lines = []
    for kind in (*REQUIRED, *((HALTING,) if halting else ())):
        if kind not in found:
            lines.append(f"no {kind} case is recorded")
        elif kind in EVERY_DEPTH:
            lacking = [depth for depth in depths if depth not in found[kind]]
            if lacking:
                lines.append(f"no {kind} case at depth {', '.join(map(str, lacking))}")
    return lines
