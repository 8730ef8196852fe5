"""The curve of loss against mean depth: its arithmetic, and the whole of it on a tiny model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.halting import draw, hindsight, join, least_depth, loss_at, print_study, study
from ouroboros.halting.fit import Choice, choose_at
from ouroboros.halting.observe import halting_scores, observe
from ouroboros.halting.options import KINDS, HalterOptions
from ouroboros.halting.run import choose_halter
from tests.support.training import tiny_model

POINTS = [Choice(0.1, 1.0, 5.0), Choice(0.5, 3.0, 4.0), Choice(0.9, 4.0, 4.5)]


def test_the_loss_at_a_depth_lies_on_the_line_between_points() -> None:
    assert loss_at(POINTS, 2.0) == pytest.approx(4.5)
    assert loss_at(POINTS, 3.0) == pytest.approx(4.0)
    assert loss_at(POINTS, 3.5) == pytest.approx(4.25)
    assert loss_at(POINTS, 0.5) is None
    assert loss_at(POINTS, 4.5) is None


def test_the_least_depth_of_a_loss_is_a_point_s() -> None:
    pairs = [(one.depth, one.loss) for one in POINTS]
    assert least_depth(pairs, 4.5) == 3.0
    assert least_depth(pairs, 5.0) == 1.0
    assert least_depth(pairs, 3.0) is None


def test_hindsight_takes_the_best_of_every_window() -> None:
    """At no price 2 and 3: mean depth 2.5, mean loss 1.5; at a price above every gain 1."""
    found = hindsight(torch.tensor([[2.0, 1.0, 3.0], [2.05, 2.02, 2.0]]))
    assert (found[-1].price, found[-1].depth, found[-1].loss) == (0.0, 2.5, 1.5)
    dear = hindsight(torch.tensor([[2.0, 1.95, 1.9]]))[0]
    assert (dear.price, dear.depth, dear.loss) == (0.1, 1.0, pytest.approx(2.0))


def test_a_study_of_a_tiny_model(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    generator = np.random.default_rng(0)
    options = HalterOptions(windows=12, seq_len=16, prompts=2)
    seen = observe(model, generator.integers(3, 40, (12, 16)), [6, 12], 4)
    held = {
        name: observe(model, generator.integers(3, 40, (5, 20)), [10], 4) for name in ("a", "b")
    }
    found = study(model, seen, held, options)
    assert found.windows == 10
    assert [curve.kind for curve in found.curves] == list(KINDS)
    whole = join(list(held.values()))
    assert found.fixed == pytest.approx(whole.losses.mean(0).tolist())
    assert found.fixed[found.best - 1] == min(found.fixed)
    assert found.hindsight[-1].loss <= min(found.fixed)
    for curve in found.curves:
        depths = [one.depth for one in curve.points]
        assert depths == sorted(depths)
        assert depths[-1] == pytest.approx(4.0) or curve.kind == "confidence"
        assert curve.gain[0] == pytest.approx(
            found.fixed[found.best - 1] - curve.chosen.loss, abs=1e-4
        )
    print_study(found)
    shown = capsys.readouterr().out
    assert "best fixed depth" in shown
    assert "hindsight" in shown


def test_a_curve_is_what_the_scores_choose() -> None:
    model = tiny_model()
    generator = np.random.default_rng(0)
    seen = observe(model, generator.integers(3, 40, (12, 16)), [6, 12], 4)
    held = observe(model, generator.integers(3, 40, (6, 20)), [10], 4)
    options = HalterOptions(kind="distance", windows=12, seq_len=16, prompts=2)
    halter, choice, _ = choose_halter(model, seen, options)
    curve = draw(model, "distance", halter, choice, held, 2)
    with torch.no_grad():
        scores = halting_scores(halter, held, model)
    assert curve.chosen == choose_at(scores, held.losses, choice.threshold)
    for point in curve.points[::9]:
        assert point == choose_at(scores, held.losses, point.threshold)
