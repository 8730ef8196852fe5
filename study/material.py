"""What the report is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from study.plan import Plan
from study.records import Baseline, Run


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Attributes:
        plan: of the study.
        tokens: that an arm is trained on, as asked for.
        runs: finished ones, in the plan's order.
        baselines: by the predictions left out of each window.
        curve_baselines: likewise, on the windows that are scored while training.
        missing: arms and seeds that are not finished.
        failed: why a run failed, by its name.
        ratios: of `RATIOS`, None where not measured.
        best_model: what `read_best_model` gives.
        downstream: of the original, `full` and `plain`, by task; empty where not scored.
    """

    plan: Plan
    tokens: int
    runs: tuple[Run, ...]
    baselines: Mapping[int, Baseline]
    curve_baselines: Mapping[int, Baseline]
    missing: tuple[tuple[str, int], ...]
    failed: Mapping[str, str]
    ratios: Mapping[str, float | None]
    best_model: Mapping[str, Any] | None = None
    downstream: Mapping[str, Any] = field(default_factory=dict)

    def of(self, arm: str) -> list[Run]:
        """Returns an arm's runs."""
        return [run for run in self.runs if run.arm == arm]

    def share(self, run: Run, depth: int, text: str | None = None) -> float:
        """Returns a run's share of the gap at a depth, of the mean or of one text."""
        loss = run.heldout(depth) if text is None else run.losses[depth][text]
        return self.baselines[run.prefix].share(loss, text)
