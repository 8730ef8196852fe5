"""Running and comparing apart: any two subjects' results go through one comparator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.choose import open_backend
from runtime.bundle.reader import open_bundle
from runtime.parity.cases import Case, Result, load_cases, recorded_results
from runtime.parity.comparison import measure, measure_all, measure_text
from runtime.parity.replay import run
from runtime.parity.verdict import AMBIGUOUS, FAIL, PASS, Bounds, compare, split_ties


@pytest.fixture(scope="module")
def cases(tiny_bundle: Path) -> list[Case]:
    return load_cases(tiny_bundle / "cases.safetensors")


@pytest.fixture(scope="module")
def results(tiny_bundle: Path, cases: list[Case]) -> list[Result]:
    bundle = open_bundle(tiny_bundle)
    return run(cases, open_backend(bundle, "cpu", 1), bundle.manifest)


def test_results_hold_what_the_recording_holds(cases: list[Case], results: list[Result]) -> None:
    for result, recorded in zip(results, recorded_results(cases), strict=True):
        assert (result.case, result.kind, result.failure) == (recorded.case, recorded.kind, "")
        assert result.outputs.keys() == recorded.outputs.keys()


def test_two_runs_are_compared_as_a_run_and_pytorch_are(
    cases: list[Case], results: list[Result]
) -> None:
    """PyTorch's results against the engine's: the same errors, from the other side."""
    # An engine repeats the positions of a long text.
    mine = [one for one in results if one.kind != "long"]
    theirs = [one for one in recorded_results(cases) if one.kind != "long"]
    there, back = compare(mine, theirs, Bounds()), compare(theirs, mine, Bounds())
    assert {there.verdict, back.verdict} <= {PASS, AMBIGUOUS}
    assert back.worst_relative_l2 == pytest.approx(there.worst_relative_l2, rel=1e-3)
    assert (back.reference_error, back.allowed) == (0, 1e-5)
    again = compare(mine, mine, Bounds(0.0))
    assert again.verdict == PASS
    assert {row.measurement.worst_relative_l2 for row in again.rows} == {0}


def test_another_release_that_differs_fails(results: list[Result]) -> None:
    def shift(result: Result) -> Result:
        return replace(result, outputs={k: v + 1e-2 for k, v in result.outputs.items()})

    steps = [one for one in results if one.kind == "decode"]
    compared = compare(map(shift, steps), steps, Bounds())
    assert {row.verdict for row in compared.rows} == {FAIL}


def test_nothing_is_skipped(results: list[Result]) -> None:
    first, second, *_ = results
    compared = compare([first], [first, second], Bounds())
    assert compared.verdict == FAIL
    assert compared.rows[-1].reason == "there is no result of it"
    assert measure_all([first, second], [first])[-1].note == "there is no reference"
    assert compare([], [], Bounds()).verdict == FAIL


def text(change: Callable[[Any], None] = lambda arrays: None, **other: Any) -> Result:
    arrays = {"tokens": np.array([4, 5]), "top2": np.array([[9.0, 7.0], [8.0, 7.5]])}
    change(arrays)
    return Result("greedy-d01", "greedy", other.pop("depth", 1), arrays, **other)


def test_first_other_token_of_a_text_and_its_margin() -> None:
    def other(arrays: Any) -> None:
        arrays["tokens"][1] = 6
        arrays["top2"][1] = [7.6, 7.7]

    (measured,) = measure(text(other, positions=(11, 12)), text())
    assert measured.divergences == ((1, 0.5),)
    assert measured.argmax_agreement == 0.5
    assert [place for place, _ in measured.position_errors] == [11, 12]


def spoil(arrays: Any) -> None:
    arrays["top2"][1, 0] = np.nan


@pytest.mark.parametrize(
    ("result", "reference", "note"),
    [
        (text(failure="no memory"), text(), "no memory"),
        (text(depth=2), text(), "greedy at depth 2, its reference is greedy at depth 1"),
        (text(spoil), text(), "NaN or infinity at token 1"),
        (text(lambda arrays: arrays.pop("tokens")), text(), "has not its 2 tokens"),
        (text(lambda arrays: arrays.pop("top2")), text(), "has not its 2 tokens"),
        (text(), text(lambda arrays: arrays.pop("top2")), "do not fit together"),
        (
            Result("long-d01", "long", 1, {"logits": np.zeros((1, 1, 4))}, (3,)),
            Result("long-d01", "long", 1, {"logits": np.zeros((1, 1, 4))}, (2,)),
            "the reference has no logits at 3",
        ),
        (
            Result("long-d01", "long", 1, {"logits": np.zeros((1, 1, 4))}, (2, 3)),
            Result("long-d01", "long", 1, {"logits": np.zeros((1, 2, 4))}, (2, 3)),
            "no logits for the 2 positions",
        ),
    ],
)
def test_what_cannot_be_compared_says_why(result: Result, reference: Result, note: str) -> None:
    (measured,) = measure(result, reference)
    assert note in measured.note
    assert measured.worst_relative_l2 == float("inf")


def test_a_text_is_measured_position_by_position() -> None:
    reference = np.random.default_rng(0).normal(size=(5, 7))
    found = reference.copy()
    found[3, found[3].argmin()] = 9
    measured = measure_text("a prompt", 4, found, reference)
    assert (measured.case, measured.depth, measured.argmax_agreement) == ("a prompt", 4, 0.8)
    ((place, margin),) = measured.divergences
    best = np.sort(reference[3])
    assert (place, margin) == (3, best[-1] - best[-2])
    assert split_ties(measured.divergences, margin) == ([], [(3, margin)])
    assert split_ties(measured.divergences, 1.01 * margin) == ([(3, margin)], [])
    assert split_ties([(0, float("nan"))], 1.0)[0] == []
