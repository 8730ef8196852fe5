"""Keeps the pictures of trainings: to draw them is a third of the time that a tiny one takes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

History = Sequence[Mapping[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def pictures_kept() -> Iterator[None]:
    """Draws the pictures of one run of each kind, and gives them to the others of that kind.

    Where no test of the session trains, nothing is loaded for it.
    """
    run = sys.modules.get("ouroboros.training.run")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_training", "plot_gates") if run else ():
            patch.setattr(run, name, once_a_kind(getattr(run, name)))
        yield


def once_a_kind(draw: Callable[..., bytes]) -> Callable[..., bytes]:
    """A picture of each kind of history: whatever is logged as often and as finite is alike."""
    drawn: dict[str, bytes] = {}

    def draw_once(history: History, *rest: Any) -> bytes:
        kind = repr(([describe_entry(entry) for entry in history], rest))
        if kind not in drawn:
            drawn[kind] = draw(history, *rest)
        return drawn[kind]

    return draw_once


def describe_entry(entry: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """What is logged at a train step, but for the numbers."""
    return sorted(
        (key, type(value).__name__, not isinstance(value, float) or math.isfinite(value))
        for key, value in entry.items()
    )
