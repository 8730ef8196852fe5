"""Choosing a token from logits, as `docs/sampling.md` specifies and tests/vectors proves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decode.options import Options
from runtime.decode.philox import uniform
from runtime.errors import EngineError

Array = NDArray[Any]
_FIRST = 512  # enough for nearly every draw: sorting 50,000 numbers costs 4 ms


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """What the model gave a token that was chosen.

    Attributes:
        token: its id.
        logprob: the natural logarithm of its probability, before any option.
        best: ids of the most likely tokens and their logarithms, the most likely first.
    """

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses the tokens of one sequence."""

    def __init__(self, options: Options, prompt: Sequence[int] = ()) -> None:
        """Takes checked options, and the tokens before the first new one."""
        self._options = options
        self._penalty = float(options.repetition_penalty or 1.0)
        self._seen = np.unique(np.array(prompt if self._penalty != 1.0 else (), np.int64))
        self._drawn = 0

    def choose(self, logits: Array) -> int:
        """The next token.

        Args:
            logits: float32 [V].

        Raises:
            EngineError: the best logit is not finite, or not once it was penalised.
        """
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise EngineError("the model's logits are not finite", "run `ouro check` on the bundle")
        if self._penalty != 1.0:
            logits = penalise(logits, self._seen, self._penalty)
            best = int(logits.argmax())
            if not math.isfinite(logits[best]):
                raise EngineError(
                    f"repetition_penalty={self._penalty} makes logits infinite",
                    "give one nearer to 1",
                )
        token = best
        if self._options.temperature and self._options.top_k != 1:
            token = draw(logits, best, self._options, self._draw)
        if self._penalty != 1.0 and token not in self._seen:
            self._seen = np.append(self._seen, token)
        return token

    def describe(self, logits: Array, token: int) -> TokenLogprob | None:
        """The log-probabilities that the options ask for; None where they ask for none."""
        count = self._options.logprobs
        if count is None:
            return None
        wide = logits.astype(np.float64)
        wide -= wide.max()
        wide -= math.log(float(np.exp(wide).sum()))
        order = largest(wide, min(count, wide.size)) if count else np.empty(0, np.int64)
        best = tuple((int(one), float(wide[one])) for one in order)
        return TokenLogprob(token, float(wide[token]), best)

    def _draw(self) -> float:
        drawn = uniform(int(self._options.seed or 0), self._drawn)
        self._drawn += 1
        return drawn


def penalise(logits: Array, seen: Array, penalty: float) -> Array:
    """Logits in float64, those of tokens that were there made less likely.

    Args:
        logits: float32 [V].
        seen: ids int64 [n], each once.
        penalty: a logit above 0 is divided by it, any other multiplied.

    Source: Keskar et al., CTRL, arXiv 1909.05858, section 4.1; as Hugging Face has it.
    """
    wide = logits.astype(np.float64)
    chosen = wide[seen]
    with np.errstate(over="ignore"):  # told of by who chooses
        wide[seen] = np.where(chosen > 0, chosen / penalty, chosen * penalty)
    return wide


def draw(logits: Array, best: int, options: Options, uniform_of: Any) -> int:
    """Draws a token by temperature, top-k, top-p and min-p, in this order.

    Args:
        logits: [V].
        best: the id of the largest.
        options: checked; a temperature above 0.
        uniform_of: called once for a number in [0, 1).
    """
    temperature, top_k = float(options.temperature or 0.0), int(options.top_k or 0)
    top_p, min_p = float(options.top_p or 1.0), float(options.min_p or 0.0)
    with np.errstate(over="ignore"):  # by a tiny temperature: minus infinity, so weight 0
        weights = (logits.astype(np.float64) - float(logits[best])) / temperature
    np.exp(weights, out=weights)
    if top_k == 0 and top_p == 1.0 and min_p == 0.0:
        return _pick(weights, uniform_of())
    # The best weighs exactly 1, so that `min_p` is a share of the best.
    if top_k == 0 and top_p == 1.0:  # few are left to be sorted
        kept = _falling(weights, np.flatnonzero(weights >= min_p))
    else:
        kept = _top(weights, top_k, top_p)
        kept = kept[weights[kept] >= min_p]
    return int(kept[_pick(weights[kept], uniform_of())])


def _top(weights: Array, top_k: int, top_p: float) -> Array:
    """Indices of the tokens that top-k and top-p keep, the most likely first."""
    count = min(top_k or weights.size, weights.size)
    if top_p == 1.0:
        return largest(weights, count)
    kept = weights if count == weights.size else weights[np.sort(largest(weights, count))]
    needed = top_p * np.cumsum(kept)[-1]  # the whole is added up in the order of the ids
    for first in (min(count, _FIRST), count):
        order = largest(weights, first)
        place = int(np.searchsorted(np.cumsum(weights[order]), needed))
        if place < first:
            return order[: place + 1]
    return order


def largest(weights: Array, count: int) -> Array:
    """Indices of the `count` largest, in falling order; equal ones in the order of the ids."""
    if count < weights.size:
        least = -np.partition(-weights, count - 1)[count - 1]
        above = np.flatnonzero(weights > least)
        chosen = np.concatenate([above, np.flatnonzero(weights == least)[: count - above.size]])
    else:
        chosen = np.arange(weights.size)
    return _falling(weights, chosen)


def _falling(weights: Array, chosen: Array) -> Array:
    """These indices by falling weight, those of equal weight in the order of the ids."""
    return chosen[np.lexsort((chosen, -weights[chosen]))]


def _pick(weights: Array, drawn: float) -> int:
    """The first whose running sum passes the drawn share of the whole."""
    running = np.cumsum(weights)
    return min(int(np.searchsorted(running, drawn * running[-1], side="right")), weights.size - 1)
