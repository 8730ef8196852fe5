"""The figures of study.json, from the records of the runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo import settings
from demo.stages import ROOT
from study.differences import compare, headline
from study.material import Material
from study.page import render_page
from study.paper import paper_numbers
from study.records import LIKE, Run, mean_heldout, write_json
from study.statistics import Curve, Estimate, estimate, extrapolate, mean

if TYPE_CHECKING:
    from study.work import Study

FORMAT = 2
TIMES = (10,)  # of the tokens trained on: where the curve is carried to
RATIOS = ("speed_ratio", "memory_ratio")
BENCH = ROOT / "bench" / "results"


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
    plan, scoring = study.plan, study.scoring
    options = study.train_options(next(iter(plan.arms.values())), 0)
    seq_len, windows = options.seq_len, options.eval_windows
    material = Material(
        plan,
        study.tokens,
        tuple(runs),
        {
            n: scoring.baseline(n, plan.seq_len, plan.windows)
            for n in {0, *(r.prefix for r in runs)}
        },
        {n: scoring.baseline(n, seq_len, windows) for n in {0, *(r.curve_prefix for r in runs)}},
        tuple(missing),
        failed,
        read_ratios(BENCH),
        read_best_model(ROOT / settings.READY),
        scoring.downstream_baseline() if any(run.downstream for run in runs) else {},
    )
    report = make_report(material)
    write_json(out / "study.json", report)
    (out / "study.md").write_text(render_page(report), encoding="utf-8")


def read_ratios(folder: Path) -> dict[str, float | None]:
    """Reads what `python -m bench.train` measured of our form, at the study's own precision.

    Compiled, where that was measured.

    Args:
        folder: of results of benchmarks, train*.json among them, of which the first counts.
    """
    from bench.train_form import COMPILED, OURS

    for path in sorted(folder.glob("train*.json")):
        precisions = json.loads(path.read_text(encoding="utf-8"))["precisions"]
        if "bf16" in precisions:
            forms = precisions["bf16"]["forms"]
            ours = forms.get(COMPILED, forms[OURS])
            return {name: float(ours[name]) for name in RATIOS}
    return dict.fromkeys(RATIOS)


def read_best_model(folder: Path) -> dict[str, Any] | None:
    """Reads what was measured of the model that lies ready in the repository.

    Args:
        folder: of it, with results.json: `tokens` that it was trained on, and `eval`, what
            `ouro eval --json` wrote of it on the windows of the study.

    Returns:
        None where there is none.
    """
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    losses = {str(row["depth"]): float(row["mean"]) for row in found["eval"]["rows"]}
    return {"model": folder.name, "tokens": int(found["tokens"]), "losses": losses}


def make_report(material: Material) -> dict[str, Any]:
    """Returns the content of study.json: JSON values."""
    plan = material.plan
    comparisons = {one.name: compare(material, one) for one in plan.comparisons}
    frozen = best_share(material, adapted=False)
    adapted_arm = best_share(material, adapted=True)
    chosen = adapted_arm or frozen
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
        "forms": plan.forms(),
        "plain_split": [plan.prelude, plan.layer, plan.coda],
        "machines": sorted({run.machine for run in material.runs}),
        "codes": sorted({run.code for run in material.runs}),
        "baseline": {
            name: {**losses, "mean": mean_heldout(losses)}
            for name, losses in (("full", baseline.full), ("plain", baseline.plain))
        },
        "downstream": dict(material.downstream),
        "arms": {name: found for name in plan.arms if (found := describe_arm(material, name))},
        "comparisons": comparisons,
        **{name: headline(comparisons.get(name)) for name in answers},
        "share_frozen_coda": frozen,
        "share_adapted_arm": adapted_arm,
        "share_adapted": share_of_best_model(material),
        "curve": carry_on(chosen["arm"], curves) if chosen else None,
        "curves": curves,
        **material.ratios,
        "paper": paper_numbers(),
        "missing": [{"arm": arm, "seed": seed} for arm, seed in material.missing],
        "failed": dict(material.failed),
        "runs": [describe_run(material, run) for run in material.runs],
    }


def share_of_best_model(material: Material) -> dict[str, Any] | None:
    """Returns the ready model's shares of the gap by depth, and the greatest."""
    best = material.best_model
    if best is None:
        return None
    shares = {depth: material.baselines[0].share(loss) for depth, loss in best["losses"].items()}
    depth = max(shares, key=lambda one: shares[one])
    return {**best, "shares": shares, "depth": int(depth), "mean": shares[depth]}


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
        "train_s": run.train_s,
        "machine": run.machine,
        "code": run.code,
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
                    "loss": mean([run.losses[depth][text] for run in runs]),
                    "share": mean([material.share(run, depth, text) for run in runs]),
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
        "loops": _loops(runs[0]),
        # A run that was only scored in its last process has none.
        "tokens_per_s": mean([run.tokens_per_s for run in runs if run.tokens_per_s > 0] or [0.0]),
        "prefix": runs[0].prefix,
        "depths": depths,
        "downstream": next((dict(run.downstream) for run in runs if run.downstream), {}),
    }


def best_share(material: Material, adapted: bool) -> dict[str, Any] | None:
    """Returns the greatest mean share of the gap of an arm with a loop, and which it is.

    Args:
        material: of the report.
        adapted: of arms with the coda adapted, or of those with it frozen.
    """
    found: list[tuple[float, str, int, Estimate]] = []
    for name in material.plan.arms:
        runs = material.of(name)
        if not runs or runs[0].prefix or (runs[0].coda != "frozen") != adapted:
            continue
        if not _loops(runs[0]):
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
    whole = {tokens: mean(ones) for tokens, ones in by_tokens.items() if len(ones) == len(runs)}
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


def _loops(run: Run) -> bool:
    return str(run.convert.get("recurrent")) != "none"
