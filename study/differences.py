"""Differences between arms, paired by seed and by window, for study.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from study.material import Material
from study.plan import Comparison
from study.records import LIKE, Run, mean_heldout
from study.statistics import Estimate, mean, over_windows, paired


def compare(material: Material, one: Comparison) -> dict[str, Any] | None:
    """Returns a difference, paired by seed; None where the two share no finished seed.

    An arm that loops nothing has its one depth in place of any. A difference in loss is of runs
    scored on the same tokens only.
    """
    depth = one.depth or material.plan.depth
    other = one.minus_depth or depth
    first, second = material.of(one.arm), material.of(one.minus)
    loss = _difference(first, depth, second, other, None)
    if loss is None:
        return None
    texts = first[0].losses[_at(first[0], depth)]
    by_text = {
        text: found.to_json()
        for text in texts
        if (found := _difference(first, depth, second, other, text))
    }
    by_depth = {}
    if not one.minus_depth:
        by_depth = {
            str(d): found.to_json()
            for d in material.plan.depths
            if (found := _difference(first, d, second, d, None))
        }
    windows = _over_windows(first, depth, second, other)
    gap = material.baselines[0]
    scale = mean_heldout(gap.plain) - mean_heldout(gap.full)
    return {
        "arm": one.arm,
        "minus": one.minus,
        "claim": one.claim,
        "depth": depth,
        "minus_depth": other,
        "loss": {**loss.to_json(), "interval_text": list(windows) if windows else None},
        "share": -loss.mean / scale,
        "by_text": by_text,
        "by_depth": by_depth,
        "verdict": judge(loss, windows),
    }


def judge(loss: Estimate, windows: tuple[float, float] | None) -> str:
    """Says what a difference in loss shows: `better`, `worse`, `open`, or `one seed`.

    Args:
        loss: over the seeds.
        windows: its interval over the windows of text, where there is one; both must agree.
    """
    if loss.low is None or loss.high is None:
        return "one seed"
    low, high = windows or (loss.low, loss.high)
    if max(loss.high, high) < 0:
        return "better"
    return "worse" if min(loss.low, low) > 0 else "open"


def headline(comparison: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns of a comparison what answers its question; None where it was not measured."""
    if comparison is None:
        return None
    kept = {name: comparison[name] for name in ("depth", "verdict", "share")}
    return {**comparison["loss"], **kept, "unit": "nats a token, held out; below 0 is better"}


def _at(run: Run, depth: int) -> int:
    """The depth that a run has for one asked: its only one where it loops nothing."""
    return depth if len(run.losses) > 1 else next(iter(run.losses))


def _difference(
    first: Sequence[Run], depth: int, second: Sequence[Run], other: int, text: str | None
) -> Estimate | None:
    sides = []
    for runs, wanted in ((first, depth), (second, other)):
        side = {}
        for run in runs:
            at = _at(run, wanted)
            if at in run.losses:
                side[run.seed] = run.heldout(at) if text is None else run.losses[at][text]
        sides.append(side)
    if not _alike(first, second):
        return None
    return paired(*sides)


def _over_windows(
    first: Sequence[Run], depth: int, second: Sequence[Run], other: int
) -> tuple[float, float] | None:
    """The interval of a difference over the held-out windows, each its mean over the seeds."""
    pairs = [(one, two) for one in first for two in second if one.seed == two.seed]
    by_text: dict[str, list[list[float]]] = {}
    for one, two in pairs:
        ones, twos = one.by_window[_at(one, depth)], two.by_window[_at(two, other)]
        for text in ones.keys() - {LIKE}:
            row = [a - b for a, b in zip(ones[text], twos[text], strict=True)]
            by_text.setdefault(text, []).append(row)
    means = {
        text: [mean(column) for column in zip(*by_text[text], strict=True)]
        for text in sorted(by_text)
    }
    return over_windows(means)


def _alike(first: Sequence[Run], second: Sequence[Run]) -> bool:
    """Whether runs are scored on the same tokens."""
    return len({run.prefix for run in (*first, *second)}) < 2
