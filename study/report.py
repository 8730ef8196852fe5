"""The figures of study.json, from the records of the runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.stages import ROOT
from study.page import render_page
from study.paper import paper_numbers
from study.plan import Comparison, Plan
from study.records import LIKE, Baseline, Run, mean_heldout, write_json
from study.statistics import Curve, Estimate, estimate, extrapolate, paired

if TYPE_CHECKING:
    from study.work import Study

FORMAT = 1
TIMES = (10, 100)  # of the tokens trained on: where the curve is carried to
RATIOS = ("speed_ratio", "memory_ratio")
BENCH = ROOT / "bench" / "results"


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
    """

    plan: Plan
    tokens: int
    runs: tuple[Run, ...]
    baselines: Mapping[int, Baseline]
    curve_baselines: Mapping[int, Baseline]
    missing: tuple[tuple[str, int], ...]
    failed: Mapping[str, str]
    ratios: Mapping[str, float | None]

    def of(self, arm: str) -> list[Run]:
        """Returns an arm's runs."""
        return [run for run in self.runs if run.arm == arm]

    def share(self, run: Run, depth: int, text: str | None = None) -> float:
        """Returns a run's share of the gap at a depth, of the mean or of one text."""
        loss = run.heldout(depth) if text is None else run.losses[depth][text]
        return self.baselines[run.prefix].share(loss, text)


def write_report(study: Study, out: Path, failed: Mapping[str, str]) -> None:
    """Writes study.json and study.md of what is finished.

    Args:
        study: whose runs are told of.
        out: the folder of both.
        failed: why a run failed, by its name.
    """
    runs, missing = [], []
    for arm, seed in study.plan.runs():
        run = study.finished(arm, seed)
        if run is None:
            missing.append((arm.name, seed))
        else:
            runs.append(run)
    plan = study.plan
    options = study.train_options(next(iter(plan.arms.values())), 0)
    seq_len, windows = options.seq_len, options.eval_windows
    material = Material(
        plan,
        study.tokens,
        tuple(runs),
        {n: study.baseline(n, plan.seq_len, plan.windows) for n in {0, *(r.prefix for r in runs)}},
        {n: study.baseline(n, seq_len, windows) for n in {0, *(r.curve_prefix for r in runs)}},
        tuple(missing),
        failed,
        read_ratios(BENCH),
    )
    report = make_report(material)
    write_json(out / "study.json", report)
    (out / "study.md").write_text(render_page(report), encoding="utf-8")


def read_ratios(folder: Path) -> dict[str, float | None]:
    """Reads what `python -m bench.train` measured of our form, at the study's own precision.

    Args:
        folder: of results of benchmarks, train*.json among them, of which the first counts.
    """
    from bench.train_form import OURS

    for path in sorted(folder.glob("train*.json")):
        precisions = json.loads(path.read_text(encoding="utf-8"))["precisions"]
        if "bf16" in precisions:
            ours = precisions["bf16"]["forms"][OURS]
            return {name: float(ours[name]) for name in RATIOS}
    return dict.fromkeys(RATIOS)


def make_report(material: Material) -> dict[str, Any]:
    """Returns the content of study.json: JSON values."""
    plan = material.plan
    comparisons = {one.name: compare(material, one) for one in plan.comparisons}
    frozen = best_share(material, adapted=False)
    adapted = best_share(material, adapted=True)
    chosen = adapted or frozen
    curves = {name: curve for name in plan.arms if (curve := read_points(material, name))}
    answers = ("controller_minus_matched_static", "depth_minus_bridge")
    baseline = material.baselines[0]
    return {
        "format": FORMAT,
        "tokens": material.tokens,
        "depth": plan.depth,
        "depths": list(plan.depths),
        "windows": plan.windows,
        "seq_len": plan.seq_len,
        "plain_split": [plan.prelude, plan.layer, plan.coda],
        "machines": sorted({run.machine for run in material.runs}),
        "codes": sorted({run.code for run in material.runs}),
        "baseline": {
            name: {**losses, "mean": mean_heldout(losses)}
            for name, losses in (("full", baseline.full), ("plain", baseline.plain))
        },
        "arms": {name: found for name in plan.arms if (found := describe_arm(material, name))},
        "comparisons": comparisons,
        **{name: _headline(comparisons.get(name)) for name in answers},
        "share_frozen_coda": frozen,
        "share_adapted": adapted,
        "curve": carry_on(chosen["arm"], curves) if chosen else None,
        "curves": curves,
        **material.ratios,
        "paper": paper_numbers(),
        "missing": [{"arm": arm, "seed": seed} for arm, seed in material.missing],
        "failed": dict(material.failed),
        "runs": [describe_run(material, run) for run in material.runs],
    }


def describe_run(material: Material, run: Run) -> dict[str, Any]:
    """Returns a run as JSON values."""
    return {
        "arm": run.arm,
        "seed": run.seed,
        "stands_for": run.stands_for,
        "tokens": run.tokens,
        "train_steps": run.train_steps,
        "trainable": run.trainable,
        "parameters": run.parameters,
        "recipe": run.recipe,
        "convert": dict(run.convert),
        "heldout": {
            str(depth): {text: loss for text, loss in texts.items() if text != LIKE}
            for depth, texts in run.losses.items()
        },
        "mean": {str(depth): run.heldout(depth) for depth in run.losses},
        "share": {str(depth): material.share(run, depth) for depth in run.losses},
        "like": {str(depth): texts[LIKE] for depth, texts in run.losses.items()},
        "prefix": run.prefix,
        "tokens_per_s": run.tokens_per_s,
        "downstream": dict(run.downstream),
    }


def describe_arm(material: Material, name: str) -> dict[str, Any] | None:
    """Returns an arm's means over its seeds by depth; None where none is finished."""
    runs = material.of(name)
    if not runs:
        return None
    arm = material.plan.arms[name]
    depths: dict[str, Any] = {}
    for depth in runs[0].losses:
        texts = runs[0].losses[depth]
        depths[str(depth)] = {
            "loss": estimate([run.heldout(depth) for run in runs]).to_json(),
            "share": estimate([material.share(run, depth) for run in runs]).to_json(),
            "by_text": {
                text: {
                    "loss": _mean([run.losses[depth][text] for run in runs]),
                    "share": _mean([material.share(run, depth, text) for run in runs]),
                }
                for text in texts
            },
        }
    return {
        "question": arm.question,
        "stage": arm.stage,
        "stands_for": sorted({run.stands_for for run in runs}),
        "seeds": [run.seed for run in runs],
        "trainable": runs[0].trainable,
        "coda": runs[0].coda,
        "tokens": runs[0].tokens,
        "loops": str(runs[0].convert.get("recurrent")) != "none",
        "prefix": runs[0].prefix,
        "depths": depths,
        "downstream": next((dict(run.downstream) for run in runs if run.downstream), {}),
    }


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
    gap = material.baselines[0]
    scale = mean_heldout(gap.plain) - mean_heldout(gap.full)
    return {
        "arm": one.arm,
        "minus": one.minus,
        "claim": one.claim,
        "depth": depth,
        "minus_depth": other,
        "loss": loss.to_json(),
        "share": -loss.mean / scale,
        "by_text": by_text,
        "by_depth": by_depth,
        "verdict": judge(loss),
    }


def judge(loss: Estimate) -> str:
    """Says what a difference in loss shows: `better`, `worse`, `open`, or `one seed`."""
    if loss.low is None or loss.high is None:
        return "one seed"
    if loss.high < 0:
        return "better"
    return "worse" if loss.low > 0 else "open"


def best_share(material: Material, adapted: bool) -> dict[str, Any] | None:
    """Returns the greatest mean share of the gap, and of which arm and depth it is.

    Args:
        material: of the report.
        adapted: of arms with the coda adapted, or of those with it frozen.
    """
    found: list[tuple[float, str, int, Estimate]] = []
    for name in material.plan.arms:
        runs = material.of(name)
        if not runs or runs[0].prefix or (runs[0].coda != "frozen") != adapted:
            continue
        for depth in runs[0].losses:
            share = estimate([material.share(run, depth) for run in runs])
            found.append((share.mean, name, depth, share))
    if not found:
        return None
    _, name, depth, share = max(found, key=lambda one: one[0])
    return {"arm": name, "depth": depth, **share.to_json()}


def read_points(material: Material, name: str) -> dict[str, Any] | None:
    """Returns an arm's share while it trained, the mean over its seeds, on fewer windows."""
    runs = [run for run in material.of(name) if run.curve]
    if not runs:
        return None
    depths = list(runs[0].curve)
    depth = material.plan.depth if material.plan.depth in depths else depths[-1]
    baseline = material.curve_baselines[runs[0].curve_prefix]
    by_tokens: dict[int, list[float]] = {}
    for run in runs:
        for tokens, loss in run.curve.get(depth, []):
            by_tokens.setdefault(tokens, []).append(baseline.share(loss))
    whole = {tokens: _mean(ones) for tokens, ones in by_tokens.items() if len(ones) == len(runs)}
    return {"depth": depth, "points": [[tokens, whole[tokens]] for tokens in sorted(whole)]}


def carry_on(name: str, curves: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns an arm's curve with the power law that is fitted to it, carried to more tokens."""
    if name not in curves:
        return None
    curve = {"arm": name, **curves[name]}
    points = [(float(tokens), float(share)) for tokens, share in curve["points"] if tokens > 0]
    fitted = extrapolate(points)
    if fitted is None:
        return {**curve, "fit": None, "extrapolation": []}
    best, near = fitted
    last = points[-1][0]
    return {
        **curve,
        "fit": {"limit": best.limit, "exponent": best.exponent, "error": best.error},
        "extrapolation": [_carry(best, near, last * times) for times in TIMES],
    }


def _carry(best: Curve, near: Sequence[Curve], tokens: float) -> dict[str, Any]:
    ends = [curve.at(tokens) for curve in near]
    return {"tokens": int(tokens), "share": best.at(tokens), "range": [min(ends), max(ends)]}


def _headline(comparison: Mapping[str, Any] | None) -> dict[str, Any] | None:
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
    if {run.prefix for run in (*first, *second)} - {first[0].prefix if first else 0}:
        return None
    return paired(*sides)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
