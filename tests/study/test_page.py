"""The report and its page from figures that are given, so that every sentence can be told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from study.differences import judge
from study.material import Material
from study.page import render_page, with_interval
from study.plan import Plan, read_plan
from study.records import LIKE, Baseline, Run, run_from_json
from study.report import make_report
from study.sentences import answer
from study.statistics import estimate

KINDS = ("wiki", "c4", "code", "technical")
FULL = Baseline({**dict.fromkeys(KINDS, 3.0), LIKE: 2.0}, {**dict.fromkeys(KINDS, 7.0), LIKE: 6.0})
SECOND_HALF = Baseline(
    {**dict.fromkeys(KINDS, 2.5), LIKE: 2.0}, {**dict.fromkeys(KINDS, 6.5), LIKE: 6.0}
)
TOKENS = (0, 31_250, 62_500, 125_000, 250_000)
RUNS = len(list(read_plan().runs()))
# Held-out loss at depth 8 by arm, a seed each.
LOSSES: dict[str, tuple[float, ...]] = {
    "bridge": (4.80, 4.82, 4.81),
    "gate-norms": (4.62, 4.65, 4.63),
    "static": (4.60, 4.66, 4.61),
    "controller": (4.59, 4.62, 4.64),
    "bridge-17": (4.62, 4.63, 4.64),
    "best-1-full": (4.30,),
    "pooling-mean": (4.00,),
}


def make_run(plan: Plan, name: str, seed: int, loss: float) -> Run:
    """A run whose loss falls by 0.01 from depth to depth, up to 8, and is 1 lower on `LIKE`."""
    arm = plan.arms[name]
    mean = name == "pooling-mean"
    depths = (1,) if name.startswith("bridge") else (1, 4, 8, 16)
    by_window = {}
    for depth in depths:
        own = loss + (0.1 / depth - 0.0125 if len(depths) > 1 else 0.0)
        kinds = dict(zip(KINDS, (own - 0.3, own + 0.1, own + 0.3, own - 0.1), strict=True))
        texts = {**kinds, LIKE: own - 1}
        by_window[depth] = {text: [one - 0.25, one + 0.25] for text, one in texts.items()}
    start = (1 - 0.2) * 7 + 0.2 * 3
    falling = [start, *(7 - 4 * (0.8 - 10 * tokens**-0.3) for tokens in TOKENS[1:])]
    return Run(
        arm=name, seed=seed, made_of={"texts": "sha"},
        stands_for="controller" if arm.best else name,
        convert=dict(arm.convert) or {"recurrent": "21"}, recipe="r",
        coda="full" if arm.best else "frozen", tokens=249_856, train_steps=244,
        trainable=1_000 + len(name), parameters=89_000_000, prefix=256 if mean else 0,
        by_window=by_window, curve_prefix=128 if mean else 0,
        curve={depths[-2] if len(depths) > 1 else 1: list(zip(TOKENS, falling, strict=True))},
        tokens_per_s=400.0, train_s=700.0, score_s=60.0, machine="a machine", code="c0de",
        downstream={"piqa": {"value": 0.55, "error": 0.035, "examples": 200.0}}
        if name == "controller" and not seed else {},
    )  # fmt: skip


@pytest.fixture(scope="module")
def material() -> Material:
    plan = read_plan()
    runs = [
        make_run(plan, arm.name, seed, LOSSES[arm.name][seed])
        for arm, seed in plan.runs()
        if seed < len(LOSSES.get(arm.name, ()))
    ]
    missing = [
        (arm.name, seed) for arm, seed in plan.runs() if seed >= len(LOSSES.get(arm.name, ()))
    ]
    baselines = {0: FULL, 256: SECOND_HALF}
    curves = {0: FULL, 128: SECOND_HALF}
    ratios = {"speed_ratio": 2.71, "memory_ratio": 0.43}
    return Material(
        plan, 250_000, tuple(runs), baselines, curves, tuple(missing), {}, ratios,
        {"model": "ready", "tokens": 1_000_000, "losses": {"1": 3.9, "8": 3.8}},
        {"full": {"piqa": {"value": 0.65, "error": 0.03, "examples": 200.0}}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(material: Material) -> Any:
    return json.loads(json.dumps(make_report(material)))


def test_report_has_what_it_must(report: Any) -> None:
    assert report["speed_ratio"] == 2.71
    assert report["memory_ratio"] == 0.43
    keys = {"arm", "seed", "tokens", "heldout", "trainable"}
    assert all(keys <= run.keys() for run in report["runs"])
    looped = next(run for run in report["runs"] if run["arm"] == "gate-norms")
    assert set(looped["heldout"]["8"]) == set(KINDS)
    # Plain 7, full 3.
    assert report["runs"][0]["share"] == {"1": pytest.approx((7 - 4.80) / 4)}
    static = report["controller_minus_matched_static"]
    # Differences -0.01, -0.04, +0.03: mean -0.0067, deviation 0.0351, times 4.303 / sqrt(3).
    assert static["mean"] == pytest.approx(-0.02 / 3, abs=1e-9)
    assert static["interval"][1] - static["mean"] == pytest.approx(0.0872, abs=1e-4)
    assert static["verdict"] == "open"
    depth = report["depth_minus_bridge"]
    assert depth["mean"] == pytest.approx((-0.18 - 0.17 - 0.18) / 3)
    assert depth["verdict"] == "better"
    assert depth["share"] == pytest.approx(0.53 / 3 / 4)


def test_best_shares_leave_out_other_tokens(report: Any) -> None:
    """The arm that is scored behind a prefix has the least loss, and is not the best."""
    frozen, adapted = report["share_frozen_coda"], report["share_adapted_arm"]
    assert (frozen["arm"], frozen["depth"], frozen["seeds"]) == ("controller", 16, 3)
    at_16 = [(7 - (loss + 0.1 / 16 - 0.0125)) / 4 for loss in LOSSES["controller"]]
    assert frozen["mean"] == pytest.approx(sum(at_16) / 3)
    assert (adapted["arm"], adapted["depth"], adapted["interval"]) == ("best-1-full", 16, None)
    ready = report["share_adapted"]
    assert (ready["depth"], ready["mean"]) == (8, pytest.approx(0.8))
    mean = report["arms"]["pooling-mean"]["depths"]["8"]["share"]["mean"]
    assert mean == pytest.approx((6.5 - 4.00) / 4)


def test_curve_is_that_of_the_best_and_carried_on(report: Any) -> None:
    curve = report["curve"]
    assert curve["arm"] == "best-1-full"
    assert [tokens for tokens, _ in curve["points"]] == list(TOKENS)
    assert curve["fit"]["exponent"] == 0.3
    assert curve["fit"]["limit"] == pytest.approx(0.8, abs=1e-6)
    (ten,) = curve["extrapolation"]
    assert ten["tokens"] == 2_500_000
    assert ten["share"] == pytest.approx(0.8 - 10 * 2_500_000**-0.3, abs=1e-6)
    assert ten["range"][0] <= ten["share"] <= ten["range"][1]


def test_page_states_what_the_figures_say(report: Any) -> None:
    page = render_page(report)
    for words in (
        (
            "**Not shown** that the Controller is better than a blind update of its size: an "
            "interval holds 0 (-0.007 nats at depth 8, -0.094 to +0.081 over 3 seeds; over the "
            "windows -0.007 to -0.007; `controller_minus_matched_static`)."
        ),
        (
            "**Yes**: the loop is worth more than the map alone (-0.177 nats at depth 8, -0.191 "
            "to -0.162 over 3 seeds; over the windows -0.177 to -0.177; `depth_minus_bridge`)."
        ),
        (
            "With the coda adapted at most 0.677 of the gap is closed, by best-1-full at depth 16 "
            "(one seed)."
        ),
        "Training is 2.71 times as fast as the plain form and takes 0.43 of its memory",
        f"**The study is not finished**: 17 of {RUNS} runs are finished",
        "- paper-controller: seed 0",
        "pooling-mean can be scored behind a prefix only",
        "| best-1-full (controller) | 1 | full |",
        "| full | 0.650 ± 0.030 |\n| controller | 0.550 ± 0.035 |",
        "(`models/ready`), trained on 1,000,000 tokens, closes 0.800 of the gap at depth 8.",
        "closes 51.3% of that gap, 43.4% less loss",
        "a share of -0.07",
    ):
        assert words in page, words
    assert "None" not in page
    assert "nan" not in page


def test_page_says_what_the_arms_of_the_plan_are_folded_to(material: Material) -> None:
    page = render_page(make_report(material))
    assert (
        "30 layers, folded: 8 + a loop over layer 21 + 8 or 5 + a loop over layers 18-21 + 8; with "
        "nothing looped 8 + map + 8, 8 + map + 9, 5 + map + 12 or 8 + 9. Every arm"
    ) in page
    core = dataclasses.replace(material.plan, stages=(material.plan.stage("core"),), comparisons=())
    few = dataclasses.replace(material, plan=core, runs=(), missing=())
    assert "folded: 8 + a loop over layer 21 + 8. Every arm" in render_page(make_report(few))


def test_page_of_nothing_says_that_nothing_is_known(material: Material) -> None:
    empty = dataclasses.replace(
        material, runs=(), missing=tuple((arm.name, seed) for arm, seed in material.plan.runs()),
        ratios={"speed_ratio": None, "memory_ratio": None},
    )  # fmt: skip
    page = render_page(make_report(empty))
    assert "`controller_minus_matched_static`: not measured yet." in page
    assert "With the coda frozen: not measured yet." in page
    assert "Speed and memory of training were not measured" in page
    assert f"0 of {RUNS} runs are finished" in page


@pytest.mark.parametrize(
    ("mean", "interval", "begins"),
    [
        (-0.2, [-0.3, -0.1], "**Yes**: it is so (-0.200 nats at depth 8, -0.300 to -0.100 over 3"),
        (0.2, [0.1, 0.3], "**No**, it is not so that it is so: the loss is higher (+0.200 nats"),
        (0.2, [-0.1, 0.5], "**Not shown** that it is so"),
        (-0.2, None, "One seed points to it, no more: it is so (0.200 nats less loss at depth 8"),
        (0.2, None, "One seed points against it, no more: it is so (0.200 nats more loss"),
    ],
)
def test_answer_follows_sign_and_interval(mean: float, interval: Any, begins: str) -> None:
    verdict = "one seed"
    if interval:
        low, high = interval
        verdict = "better" if high < 0 else "worse" if low > 0 else "open"
    loss = {
        "mean": mean, "interval": interval, "seeds": 3 if interval else 1, "interval_text": None,
    }  # fmt: skip
    comparison = {
        "claim": "it is so", "loss": loss, "depth": 8, "minus_depth": 8, "verdict": verdict,
    }  # fmt: skip
    assert answer("x", comparison).startswith(begins)


def test_seeds_and_windows_must_agree() -> None:
    lower = estimate([-0.2, -0.21, -0.19])
    assert judge(lower, (-0.3, -0.1)) == "better"
    assert judge(lower, (-0.3, 0.1)) == "open"
    assert judge(lower, None) == "better"
    assert judge(estimate([0.2, 0.21, 0.19]), (0.1, 0.3)) == "worse"
    assert judge(estimate([-0.2]), (-0.3, -0.1)) == "one seed"


def test_interval_is_written_as_half_of_it() -> None:
    assert with_interval({"mean": 0.5, "interval": [0.4, 0.6], "seeds": 3}) == "0.500 ± 0.100"
    assert with_interval({"mean": -0.5, "interval": None, "seeds": 1}, sign=True) == "-0.500"


def test_record_is_read_back_as_it_was(material: Material, tmp_path: Path) -> None:
    run = material.runs[1]
    again = run_from_json(json.loads(json.dumps(dataclasses.asdict(run))))
    assert again == run
