"""Intervals against printed tables, and the curve against one that is known."""

from __future__ import annotations

import numpy as np
import pytest

from study.statistics import estimate, extrapolate, over_windows, paired, student_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),
    # Student's t at 0.975, of any printed table (Abramowitz and Stegun, table 26.10).
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)],
)
def test_quantile_is_that_of_the_tables(degrees: int, expected: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(expected, abs=5e-4)


def test_interval_of_three_values() -> None:
    found = estimate([1.0, 2.0, 3.0])
    # The deviation is 1, its error 1 / sqrt(3), times 4.3027.
    assert found.mean == 2.0
    assert found.low == pytest.approx(2 - 2.4841, abs=1e-4)
    assert found.high == pytest.approx(2 + 2.4841, abs=1e-4)
    assert found.to_json()["seeds"] == 3


def test_one_value_has_no_interval() -> None:
    assert estimate([1.5]).to_json() == {"mean": 1.5, "interval": None, "seeds": 1}


def test_difference_is_paired_by_seed() -> None:
    first, second = {0: 1.0, 1: 5.0, 2: 9.0}, {2: 8.9, 1: 4.9, 7: 0.0}
    found = paired(first, second)
    assert found is not None
    # Seeds far apart, differences alike: the interval is that of the differences.
    assert (found.count, round(found.mean, 9)) == (2, 0.1)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_power_law_is_found_again() -> None:
    points = [(float(tokens), 0.8 - 12.0 * tokens**-0.3) for tokens in (30e3, 60e3, 120e3, 240e3)]
    fitted = extrapolate(points)
    assert fitted is not None
    best, near = fitted
    assert best.exponent == 0.3
    assert best.limit == pytest.approx(0.8, abs=1e-6)
    assert best.at(2.4e6) == pytest.approx(0.8 - 12.0 * 2.4e6**-0.3, abs=1e-6)
    assert best in near
    assert (
        min(one.at(2.4e6) for one in near) <= best.at(2.4e6) <= max(one.at(2.4e6) for one in near)
    )


def test_too_few_points_are_not_carried_on() -> None:
    assert extrapolate([(1e4, 0.1), (2e4, 0.2), (3e4, 0.3)]) is None


def test_interval_over_windows_is_that_of_their_mean() -> None:
    rng = np.random.default_rng(3)
    texts = {name: list(rng.normal(mean, 1, 400)) for name, mean in (("wiki", 0.2), ("c4", 0.4))}
    found = over_windows(texts)
    assert found is not None
    # Each text's mean errs by 1 / 20, the mean of both by 1 / 28; 95 % lie within 1.96 of that.
    centre = sum(float(np.mean(one)) for one in texts.values()) / 2
    assert found[0] == pytest.approx(centre - 1.96 / 28.28, abs=0.01)
    assert found[1] == pytest.approx(centre + 1.96 / 28.28, abs=0.01)
    assert over_windows(texts) == found
    assert over_windows({"wiki": [0.1]}) is None
