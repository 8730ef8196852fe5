"""Means with their confidence intervals, differences paired by seed and window, a curve's end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
EXPONENTS = tuple(round(0.05 * number, 2) for number in range(1, 41))
"""Exponents that `extrapolate` tries: 0.05 to 2."""
FEWEST_POINTS = 4
DRAWS = 4000
"""Resampled sets of windows that `over_windows` takes its interval from."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        mean: of the values.
        low: lower end of the interval; None of a single value, which has none.
        high: its upper end.
        count: how many values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def to_json(self) -> dict[str, Any]:
        """Returns mean, interval and count as JSON values."""
        interval = None if self.low is None else [self.low, self.high]
        return {"mean": self.mean, "interval": interval, "seeds": self.count}


@dataclass(frozen=True)
class Curve:
    """share(tokens) = limit - scale * tokens ** -exponent, fitted to points.

    Attributes:
        limit: where the share goes.
        scale: how far it is from there, with the exponent.
        exponent: of the power of the tokens.
        error: root of the mean squared error of the points.
    """

    limit: float
    scale: float
    exponent: float
    error: float

    def at(self, tokens: float) -> float:
        """Returns the share after so many tokens."""
        return self.limit - self.scale * math.exp(-self.exponent * math.log(tokens))


def student_cdf(t: float, degrees: int) -> float:
    """Returns the probability that Student's t with whole degrees of freedom is below `t`.

    Source: Abramowitz and Stegun, 26.7.3 (odd degrees) and 26.7.4 (even).
    """
    angle = math.atan2(abs(t), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = 1.0, 1.0
    if degrees % 2:
        term = total = cosine
        for k in range(2, degrees - 1, 2):
            term *= cosine * cosine * k / (k + 1)
            total += term
        within = 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
    else:
        for k in range(1, degrees - 1, 2):
            term *= cosine * cosine * k / (k + 1)
            total += term
        within = sine * total
    return 0.5 + math.copysign(within / 2, t)


def student_quantile(probability: float, degrees: int) -> float:
    """Returns the t that Student's t is below with this probability, above one half."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if student_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean and its `CONFIDENCE` interval by Student's t.

    Args:
        values: at least one; of one there is no interval.
    """
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return Estimate(mean, None, None, count)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = student_quantile((1 + CONFIDENCE) / 2, count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """Returns first - second, paired by seed; None where they share no seed.

    Args:
        first: values by seed.
        second: likewise.
    """
    seeds = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in seeds]) if seeds else None


def mean(values: Sequence[float]) -> float:
    """Returns the mean of values, of which there is at least one."""
    return sum(values) / len(values)


def over_windows(differences: Mapping[str, Sequence[float]]) -> tuple[float, float] | None:
    """Returns the `CONFIDENCE` interval of a mean difference over the windows it was measured on.

    By bootstrap: of each text as many windows are drawn as it has, with replacement, and the mean
    of the texts' means is taken. Windows of one document are alike, so it is rather too narrow.

    Args:
        differences: of two runs on the same windows, by text.

    Returns:
        Both ends; None where no text has two windows.
    """
    if all(len(one) < 2 for one in differences.values()):
        return None
    rng = np.random.default_rng(0)
    total = np.zeros(DRAWS)
    for one in differences.values():
        values = np.asarray(one, dtype=np.float64)
        total += values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(total / len(differences), [tail, 1 - tail])
    return float(low), float(high)


def extrapolate(points: Sequence[tuple[float, float]]) -> tuple[Curve, tuple[Curve, ...]] | None:
    """Fits a share that closes on a limit as a power of the tokens.

    For each of `EXPONENTS` limit and scale are least squares; the exponent with the least error is
    the fit. So few points do not tell the exponent, so all those that fit nearly as well (twice the
    least error, or a thousandth of share) are returned too: they say how far the end is known.

    Args:
        points: (tokens, share), tokens above 0.

    Returns:
        The fit and all that are nearly as good, it among them; None of fewer than `FEWEST_POINTS`.
    """
    if len(points) < FEWEST_POINTS:
        return None
    tokens, shares = (np.asarray(side, dtype=np.float64) for side in zip(*points, strict=True))
    fits = []
    for exponent in EXPONENTS:
        rows = np.stack([np.ones_like(tokens), -(tokens**-exponent)], axis=-1)
        (limit, scale), *_ = np.linalg.lstsq(rows, shares, rcond=None)
        error = float(np.sqrt(np.mean((rows @ [limit, scale] - shares) ** 2)))
        fits.append(Curve(float(limit), float(scale), exponent, error))
    best = min(fits, key=lambda fit: fit.error)
    near = tuple(fit for fit in fits if fit.error <= max(2 * best.error, best.error + 1e-3))
    return best, near
