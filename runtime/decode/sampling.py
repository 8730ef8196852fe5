"""Choosing a token from logits: greedy, or temperature with top-k and top-p."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.manifest import SamplingSpec
from runtime.errors import EngineError

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy, top_k 0 is off, top_p 1 is off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def make_sampling(
    defaults: SamplingSpec,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Sampling:
    """Checks sampling options; None takes the bundle's default.

    Raises:
        EngineError: an option is of a wrong type or outside its range.
    """
    temperature = defaults.temperature if temperature is None else temperature
    top_k = defaults.top_k if top_k is None else top_k
    top_p = defaults.top_p if top_p is None else top_p
    if not _is_number(temperature) or not 0 <= temperature < math.inf:
        raise EngineError(
            f"temperature={temperature!r} is not allowed", "0 is greedy, else above 0"
        )
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 0:
        raise EngineError(f"top_k={top_k!r} is not allowed", "a whole number, 0 keeps every token")
    if not _is_number(top_p) or not 0 < top_p <= 1:
        raise EngineError(f"top_p={top_p!r} is not allowed", "above 0 and at most 1")
    return Sampling(float(temperature), int(top_k), float(top_p))


def make_generator(seed: int | None) -> np.random.Generator:
    """A generator of its own for one row; None seeds it from the system.

    Raises:
        EngineError: the seed is not a whole number of 0 or more.
    """
    wrong = isinstance(seed, bool) or not isinstance(seed, int | np.integer)
    if seed is not None and (wrong or seed < 0):
        raise EngineError(f"seed={seed!r} is not allowed", "a whole number of 0 or more")
    return np.random.default_rng(seed)


def sample(logits: Array, sampling: Sampling, generator: np.random.Generator) -> int:
    """Chooses one token.

    Like Hugging Face's warpers, in the order temperature, top-k, top-p; top-p keeps the fewest
    tokens whose probabilities reach it, the first always.

    Args:
        logits: float32 [V].
        sampling: checked options.
        generator: drawn from once a token, unless the choice is greedy.

    Raises:
        EngineError: the best logit is not finite.
    """
    best = int(logits.argmax())
    if not math.isfinite(logits[best]):
        raise EngineError("the model's logits are not finite", "run `ouro check` on the bundle")
    if sampling.temperature == 0 or sampling.top_k == 1:
        return best
    with np.errstate(over="ignore"):  # by a tiny temperature: minus infinity, so weight 0
        weights = (logits.astype(np.float64) - float(logits[best])) / sampling.temperature
    np.exp(weights, out=weights)
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        return _draw(weights, generator)
    kept = _top(weights, sampling)
    return int(kept[_draw(weights[kept], generator)])


def _top(weights: Array, sampling: Sampling) -> Array:
    """Indices of the tokens that top-k and top-p keep, the most likely first."""
    count = min(sampling.top_k or weights.size, weights.size)
    if sampling.top_p == 1.0:
        return _largest(weights, count)
    first = min(count, 512)  # enough for nearly every draw: sorting 50,000 numbers costs 4 ms
    total = None if count < weights.size else float(weights.sum())
    while True:
        order = _largest(weights, first)
        running = np.cumsum(weights[order])
        if first == count:
            total = float(running[-1])
        if total is not None:
            needed = int(np.searchsorted(running, sampling.top_p * total)) + 1
            if needed <= first:
                return order[:needed]
        if first == count:
            return order
        first = count


def _largest(weights: Array, count: int) -> Array:
    """Indices of the `count` largest, in falling order; equal ones in the order of the ids."""
    if count < weights.size:
        chosen = np.sort(np.argpartition(-weights, count - 1)[:count])
    else:
        chosen = np.arange(weights.size)
    return chosen[np.argsort(-weights[chosen], kind="stable")]


def _draw(weights: Array, generator: np.random.Generator) -> int:
    running = np.cumsum(weights)
    drawn = generator.random() * running[-1]
    return min(int(np.searchsorted(running, drawn, side="right")), weights.size - 1)


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float | np.integer | np.floating) and not math.isnan(value)
