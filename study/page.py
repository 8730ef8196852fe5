"""docs/study.md, from study.json alone: tables, and sentences that follow from the figures.

No sentence of an answer is written by hand: which one stands there is decided by a difference's
sign and interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from study.records import LIKE
from study.sentences import (
    answer,
    count_missing,
    say_best,
    say_best_model,
    say_curve,
    say_forms,
)

Report = Mapping[str, Any]
NONE = "–"


def render_page(report: Report) -> str:
    """Returns the page in Markdown.

    Args:
        report: the content of study.json.
    """
    parts = [
        _head(report),
        _answers(report),
        _arms(report),
        _kinds(report),
        _comparisons(report),
        _curve(report),
        _downstream(report),
        _paper(report),
        _method(report),
        _missing(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def with_interval(value: Mapping[str, Any] | None, digits: int = 3, sign: bool = False) -> str:
    """Writes a mean and half of its interval: `0.512 ± 0.010`; the mean alone of one seed."""
    if value is None:
        return NONE
    shown = f"{value['mean']:{'+' if sign else ''}.{digits}f}"
    if value["interval"] is None:
        return shown
    low, high = value["interval"]
    return f"{shown} ± {(high - low) / 2:.{digits}f}"


def _head(report: Report) -> str:
    prelude, layer, coda = report["plain_split"]
    return (
        "# What each part of a folded model is worth\n\n<!-- Written by `make study` from "
        "study.json. Do not edit: it is written anew. -->\n\nSmolLM2-135M-Instruct, 30 layers, "
        f"folded: {say_forms(report['forms'])}. Every arm is trained on the same number of "
        f"tokens, {_tokens(report):,}, in the same number of updates. The share of the gap is "
        f"(plain − arm) / (plain − full): 0 is the plain model of {prelude} + layer {layer} + "
        f"{coda} with nothing trained, 1 the original with all its layers, all on the same windows "
        "of text that nothing was trained on. ± is the 95 % interval over seeds by Student's t; "
        "where there is none, there was one seed."
    )


def _tokens(report: Report) -> int:
    """What every arm was trained on: whole train steps of about as many as were asked for."""
    return int(report["runs"][0]["tokens"] if report["runs"] else report["tokens"])


def _answers(report: Report) -> str:
    lines = ["## Answers", ""]
    for name in ("controller_minus_matched_static", "depth_minus_bridge"):
        lines.append(f"- {answer(name, report['comparisons'].get(name))}")
    for name, one in report["comparisons"].items():
        if name not in ("controller_minus_matched_static", "depth_minus_bridge") and one:
            lines.append(f"- {answer(name, one)}")
    lines.append(f"- {say_best('frozen', report['share_frozen_coda'])}")
    lines.append(f"- {say_best('adapted', report['share_adapted_arm'])}")
    lines.append(f"- {say_best_model(report['share_adapted'])}")
    lines.append(f"- {say_curve(report['curve'])}")
    speed, memory = report["speed_ratio"], report["memory_ratio"]
    if speed is None or memory is None:
        lines.append("- Speed and memory of training were not measured (`python -m bench.train`).")
    else:
        lines.append(
            f"- Training is {speed:.2f} times as fast as the plain form and takes {memory:.2f} of "
            "its memory above the loaded model's (`python -m bench.train --compile`)."
        )
    if report["missing"]:
        lines.append(f"- **The study is not finished**: {count_missing(report)}; see the end.")
    return "\n".join(lines)


def _arms(report: Report) -> str:
    if not report["arms"]:
        return ""
    depths = report["depths"]
    header = ["arm", "seeds", "coda", "trainable", *(f"depth {one}" for one in depths), "tokens/s"]
    rows = []
    for name, arm in report["arms"].items():
        cells = [_name(name, arm), str(len(arm["seeds"])), arm["coda"], f"{arm['trainable']:,}"]
        for depth in depths:
            found = arm["depths"].get(str(depth))
            cells.append(with_interval(found["share"]) if found else NONE)
        rows.append([*cells, f"{arm['tokens_per_s']:.0f}"])
    questions = [f"- {_name(name, arm)}: {arm['question']}" for name, arm in report["arms"].items()]
    note = (
        "An arm that loops nothing has one depth; it stands under 1. Tokens and updates are equal, "
        "computing is not: the last column is what training took, on a machine with other work."
    )
    return "\n\n".join(
        ["## Share of the gap, held out", table(header, rows), note, "\n".join(questions)]
    )


def _kinds(report: Report) -> str:
    if not report["arms"]:
        return ""
    baseline, depth = report["baseline"], report["depth"]
    kinds = [text for text in baseline["full"] if text not in (LIKE, "mean")]
    texts = [*kinds, "mean", LIKE]
    rows = [
        [name, *(f"{baseline[name][text]:.3f}" for text in texts)] for name in ("full", "plain")
    ]
    for name, arm in report["arms"].items():
        found = _at(arm, depth)
        by_text = found["by_text"]
        cells = [f"{by_text[kind]['loss']:.3f} ({by_text[kind]['share']:.2f})" for kind in kinds]
        mean = f"{found['loss']['mean']:.3f} ({found['share']['mean']:.2f})"
        like = f"{by_text[LIKE]['loss']:.3f} ({by_text[LIKE]['share']:.2f})"
        rows.append([_name(name, arm), *cells, mean, like])
    heading = f"## Loss by kind of text, at depth {depth}"
    note = (
        "Nats a token, in brackets the share of that text's gap. The last column is of text "
        "like a third of what was trained on, passages of other articles; the mean is of the "
        "four kinds before. Arms trained at another depth stand at this one all the same."
    )
    marked = [name for name, arm in report["arms"].items() if arm["prefix"]]
    if marked:
        note += (
            f" {', '.join(marked)} can be scored behind a prefix only, on the second half of each "
            "window; its shares are against full and plain on these, its losses are not to be "
            "held against the others'."
        )
    return "\n\n".join([heading, note, table(["", *texts], rows)])


def _comparisons(report: Report) -> str:
    found = {name: one for name, one in report["comparisons"].items() if one}
    if not found:
        return ""
    rows = []
    for name, one in found.items():
        at = str(one["depth"])
        if one["minus_depth"] != one["depth"]:
            at += f" − {one['minus_depth']}"
        by_text = one["by_text"]
        cells = [name, f"{one['arm']} − {one['minus']}", at, with_interval(one["loss"], sign=True)]
        windows = one["loss"]["interval_text"]
        cells.append("{:+.3f} to {:+.3f}".format(*windows) if windows else NONE)
        cells.append(str(one["loss"]["seeds"]))
        cells.append(with_interval(by_text.get(LIKE), sign=True))
        cells.append(one["verdict"])
        rows.append(cells)
    header = ["", "loss of", "depth", "held out", "over windows", "seeds", LIKE, "verdict"]
    note = (
        "Nats a token, paired by seed; below 0 the first is better. ± is over the seeds, by "
        "Student's t; `over windows` is the 95 % interval of a bootstrap over the windows of text, "
        "drawn within each kind, and rather too narrow, since windows of one document are alike "
        "(the eight of c4 come out of about four documents). `better` and `worse` are where both "
        "leave 0 out, `open` where one holds it. The intervals are of each difference by itself: "
        "of twenty, one leaves 0 out by chance."
    )
    parts = ["## Differences", note, table(header, rows)]
    depths = [str(depth) for depth in report["depths"]]
    lines = [
        [name, *(with_interval(one["by_depth"].get(depth), sign=True) for depth in depths)]
        for name, one in found.items()
        if one["by_depth"]
    ]
    if lines:
        parts += ["The same at every depth:", table(["", *depths], lines)]
    return "\n\n".join(parts)


def _curve(report: Report) -> str:
    if not report["curves"]:
        return ""
    tokens = sorted({one[0] for curve in report["curves"].values() for one in curve["points"]})
    rows = []
    for name, curve in report["curves"].items():
        found = dict(map(tuple, curve["points"]))
        cells = [f"{found[one]:.3f}" if one in found else NONE for one in tokens]
        rows.append([f"{name}, depth {curve['depth']}", *cells])
    parts = [
        "## Share against tokens",
        (
            "While training, on fewer windows than above, so not the same to the digit. The "
            "learning rate falls to nothing at the end: a point before it is not where a shorter "
            "training ends."
        ),
        table(["", *(f"{one:,}" for one in tokens)], rows),
    ]
    curve = report["curve"]
    if curve and curve["fit"]:
        fit = curve["fit"]
        parts.append(
            f"Fitted to {curve['arm']}: share = {fit['limit']:.3f} − c · "
            f"tokens^−{fit['exponent']:.2f}, by least squares in limit and c for each exponent of "
            f"0.05 to 2, the exponent with the least error ({fit['error']:.4f}). The range is that "
            "of all exponents that fit nearly as well. It says where this recipe would go, were "
            "its learning rate stretched over more tokens of the same text; it was not tried."
        )
        ends = [
            [f"{one['tokens']:,}", f"{one['share']:.3f}", "{:.3f} to {:.3f}".format(*one["range"])]
            for one in curve["extrapolation"]
        ]
        parts.append(table(["tokens", "share, carried on", "range"], ends))
    return "\n\n".join(parts)


def _downstream(report: Report) -> str:
    scored = {name: arm for name, arm in report["arms"].items() if arm["downstream"]}
    if not scored:
        return "## Downstream\n\nNot scored: lm-eval was not installed, or no such run is finished."
    tasks = list(next(iter(scored.values()))["downstream"])
    every = {
        **report["downstream"],
        **{_name(n, arm): arm["downstream"] for n, arm in scored.items()},
    }
    rows = [
        [name, *(f"{one[task]['value']:.3f} ± {one[task]['error']:.3f}" for task in tasks)]
        for name, one in every.items()
    ]
    examples = next(iter(every.values()))[tasks[0]]["examples"]
    note = (
        f"The first {examples:.0f} examples of each: too few to rank arms by. full and plain are "
        "the original, whole and plainly shortened. "
        "lm-eval, no examples shown, at the default depth, one seed; accuracy by "
        "length-normalised likelihood, of boolq by likelihood; ± is the standard error. Guessing "
        "gets 0.5, 0.25, 0.2 and about 0.62 (boolq, always yes)."
    )
    return "\n\n".join(["## Downstream", note, table(["", *tasks], rows)])


def _paper(report: Report) -> str:
    paper = report["paper"]
    own, held = paper["training_text"], paper["held_out"]
    depths = list(own["controller"])
    rows = [
        ["Controller", *(f"{own['controller'][depth]:.3f}" for depth in depths)],
        ["static", *(f"{own['static'][depth]:.3f}" for depth in depths)],
    ]
    lines = [
        "## The paper's numbers, and why they are not like for like",
        (
            f"{paper['source']}, Qwen2.5-3B: loss on its training text {own['plain']:.3f} with 17 "
            f"layers, {own['full']:.3f} with all 36. At depth 8 its Controller closes "
            f"{own['share']:.1%} of that gap, {own['loss_reduction']:.1%} less loss. Held out: "
            f"{held['plain']:.3f} with 17 layers, {held['ouroboros']:.3f} with the Controller, "
            f"{held['full']:.3f} with all: a share of {held['share']:.2f}."
        ),
        table(["loss of its training text at depth", *depths], rows),
        "\n".join(f"- {line}" for line in paper["not_alike"]),
    ]
    return "\n\n".join(lines)


def _method(report: Report) -> str:
    lines = [
        "## How it was measured",
        "",
        (
            "- `make study`; arms, recipes and order stand in `recipes/study.toml`, the depth at "
            f"which arms are compared, {report['depth']}, among it, chosen before the first run."
        ),
        (
            f"- {report['windows']} windows of {report['seq_len']} tokens of each text, labels "
            "shifted once. Held-out texts: wiki, c4, code, technical (`demo/fetch.py`), each "
            "counted once."
        ),
        (
            "- Training text: passages of Wikipedia, technical writing and code in equal parts "
            "(`study/texts.py`), without any document that shares 13 words in a row with a "
            "held-out text or a downstream task, BoolQ's dev set among them."
        ),
        "- A seed draws the order of the text, the depths and what starts at random.",
        (
            "- The gate's learning rate, a tenth of all other rates, was chosen on windows of the "
            "same held-out texts before the study (`study/LOG.md`); the arms whose names end in "
            "rate-low and rate-high say what another rate does to arms with a loop and without."
        ),
        (
            "- The best of several arms is chosen by the same held-out loss that it is then told "
            "by: a little of its lead is chance."
        ),
    ]
    machines = "; ".join(report["machines"])
    lines += [f"- Machine: {machines}."] if machines else []
    if len(report["codes"]) > 1:
        lines.append(
            f"- Runs were made by {len(report['codes'])} states of the code of `ouroboros`; see "
            "study/results/runs."
        )
    return "\n".join(lines)


def _missing(report: Report) -> str:
    missing: dict[str, list[int]] = {}
    for one in report["missing"]:
        missing.setdefault(one["arm"], []).append(one["seed"])
    if not missing:
        return "## What is missing\n\nNothing: every arm of the plan is finished at every seed."
    lines = [f"- {arm}: seed {', '.join(map(str, seeds))}" for arm, seeds in missing.items()]
    lines += [f"- {name} failed: {why}" for name, why in report["failed"].items()]
    return "\n".join(["## What is missing", "", "`make study` goes on with these:", "", *lines])


def _name(name: str, arm: Mapping[str, Any]) -> str:
    others = [one for one in arm["stands_for"] if one != name]
    return f"{name} ({', '.join(others)})" if others else name


def _at(arm: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    depths = arm["depths"]
    found: Mapping[str, Any] = depths.get(str(depth)) or next(iter(depths.values()))
    return found
