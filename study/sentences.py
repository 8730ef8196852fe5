"""The sentences of the study's page: which one is said follows from the figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def answer(name: str, comparison: Mapping[str, Any] | None) -> str:
    """States what a difference shows.

    Args:
        name: of the comparison.
        comparison: as study.json has it; None where its arms share no finished seed.
    """
    if comparison is None:
        return f"`{name}`: not measured yet."
    loss, claim = comparison["loss"], comparison["claim"]
    mean, seeds = loss["mean"], loss["seeds"]
    depth, other = comparison["depth"], comparison["minus_depth"]
    at = f"at depth {depth}" if depth == other else f"depth {depth} against {other}"
    text = ""
    if loss["interval_text"] is not None:
        text = "; over the windows {:+.3f} to {:+.3f}".format(*loss["interval_text"])
    if loss["interval"] is None:
        size = f"{abs(mean):.3f} nats {'less' if mean < 0 else 'more'} loss {at}, one seed{text}"
        verdict = "One seed points to it" if mean < 0 else "One seed points against it"
        return f"{verdict}, no more: {claim} ({size}; `{name}`)."
    low, high = loss["interval"]
    figures = f"{mean:+.3f} nats {at}, {low:+.3f} to {high:+.3f} over {seeds} seeds{text}; `{name}`"
    match comparison["verdict"]:
        case "better":
            return f"**Yes**: {claim} ({figures})."
        case "worse":
            return f"**No**, it is not so that {claim}: the loss is higher ({figures})."
        case _:
            return f"**Not shown** that {claim}: an interval holds 0 ({figures})."


def say_forms(forms: Mapping[str, Sequence[str]]) -> str:
    """States which layers arms keep and which they loop.

    Args:
        forms: as study.json has it.
    """
    looped, unlooped = (_any_of(forms[name]) for name in ("looped", "unlooped"))
    kept = [looped] if looped else []
    return "; ".join([*kept, f"with nothing looped {unlooped}"] if unlooped else kept)


def _any_of(words: Sequence[str]) -> str:
    *others, last = words or [""]
    return f"{', '.join(others)} or {last}" if others else last


def say_best(coda: str, best: Mapping[str, Any] | None) -> str:
    """States the greatest share of the gap, of all arms with a loop and all depths.

    Args:
        coda: `frozen` or `adapted`.
        best: as study.json has it; None where no such arm is finished.
    """
    words = {"frozen": "With the coda frozen", "adapted": "With the coda adapted"}[coda]
    if best is None:
        return f"{words}: not measured yet."
    over = "one seed"
    if best["interval"] is not None:
        low, high = best["interval"]
        over = f"{low:.3f} to {high:.3f} over {best['seeds']} seeds"
    return (
        f"{words} at most {best['mean']:.3f} of the gap is closed, by {best['arm']} at depth "
        f"{best['depth']} ({over})."
    )


def say_best_model(best: Mapping[str, Any] | None) -> str:
    """States what the model that lies ready closes of the gap.

    Args:
        best: as study.json has it; None where there is none.
    """
    if best is None:
        return "A model trained for longer: not there yet."
    return (
        f"The model that lies ready (`models/{best['model']}`), trained on {best['tokens']:,} "
        f"tokens, closes {best['mean']:.3f} of the gap at depth {best['depth']}."
    )


def say_curve(curve: Mapping[str, Any] | None) -> str:
    """States where more tokens would lead.

    Args:
        curve: as study.json has it; None where nothing is finished.
    """
    if curve is None:
        return "Share against tokens: not measured yet."
    if not curve["extrapolation"]:
        return f"{curve['arm']} was scored too seldom while it trained to carry its curve on."
    last = curve["points"][-1]
    ends = [
        f"{one['share']:.2f} after {one['tokens']:,} ({one['range'][0]:.2f} to "
        f"{one['range'][1]:.2f})"
        for one in curve["extrapolation"]
    ]
    return (
        f"Carried on, the curve of {curve['arm']} leads from {last[1]:.2f} after {last[0]:,} "
        f"tokens to {' and '.join(ends)}: a fitted power law, not a measurement."
    )


def count_missing(report: Mapping[str, Any]) -> str:
    """States how many runs are missing."""
    missing, done = len(report["missing"]), len(report["runs"])
    return f"{done} of {done + missing} runs are finished"
