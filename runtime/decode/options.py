"""What a caller may ask of a generation beside its prompt: one place for all of it.

Standard library only: `ouro run --help` reads it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict

from runtime.errors import EngineError
from runtime.options import option

if TYPE_CHECKING:
    from runtime.bundle.manifest import SamplingSpec

MAX_SEED = 2**64 - 1
_NEUTRAL = "default: the bundle's"


@dataclasses.dataclass(frozen=True)
class Options:
    """How one sequence is generated; `docs/sampling.md` says exactly how a token is chosen.

    None takes the bundle's default, but for `seed`, where the system draws one, and `logprobs`,
    where none are kept. `logprobs` is how many of the best tokens are kept beside the chosen one,
    each with the logarithm of the probability that the model gave it, before any option here.
    """

    max_new_tokens: int = option(64, "tokens to generate at most")
    temperature: float | None = option(None, f"0 takes the most likely token; {_NEUTRAL}")
    top_k: int | None = option(None, f"keep the k most likely tokens; 0 keeps all; {_NEUTRAL}")
    top_p: float | None = option(
        None, f"keep the most likely tokens that reach this probability; {_NEUTRAL}"
    )
    min_p: float | None = option(
        None, f"keep tokens this likely or more, as a share of the likeliest; {_NEUTRAL}"
    )
    repetition_penalty: float | None = option(
        None, f"above 1 makes tokens that were there less likely; 1: none; {_NEUTRAL}"
    )
    seed: int | None = option(None, "makes sampling repeatable; default: another one every time")
    stop: tuple[str, ...] = option((), "text to stop before; may be given several times")
    logprobs: int | None = option(None, "keep log-probabilities of the chosen and the best tokens")


class Changes(TypedDict, total=False):
    """The fields of Options as keyword arguments; in a batch a seed may be given for every row."""

    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | Sequence[int] | None
    stop: str | Sequence[str] | None
    logprobs: int | None


def check_options(options: Options, defaults: SamplingSpec) -> Options:
    """The options with nothing left open but `logprobs`.

    Args:
        options: as given.
        defaults: the bundle's.

    Raises:
        EngineError: one is of a wrong type or outside its range.
    """
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    filled = {name: getattr(defaults, name) for name in names if getattr(options, name) is None}
    chosen = dataclasses.replace(options, **filled)
    _check_count("max_new_tokens", chosen.max_new_tokens, 1, "a whole number of 1 or more")
    _check_number("temperature", chosen.temperature, 0.0, math.inf, "0 is greedy, else above 0")
    _check_count("top_k", chosen.top_k, 0, "a whole number, 0 keeps every token")
    _check_number("top_p", chosen.top_p, 5e-324, 1.0, "above 0 and at most 1")
    _check_number("min_p", chosen.min_p, 0.0, 1.0, "0 keeps every token, at most 1")
    penalty = chosen.repetition_penalty
    _check_number("repetition_penalty", penalty, 5e-324, math.inf, "above 0, 1 changes nothing")
    if chosen.logprobs is not None:
        _check_count("logprobs", chosen.logprobs, 0, "how many of the best tokens, 0 or more")
    if chosen.seed is None:
        chosen = dataclasses.replace(chosen, seed=int.from_bytes(os.urandom(8)))
    else:
        _check_count("seed", chosen.seed, 0, f"a whole number in 0..{MAX_SEED}", MAX_SEED)
    return dataclasses.replace(chosen, stop=check_stops(chosen.stop))


def check_stops(stop: object) -> tuple[str, ...]:
    """Stop strings: one, several, or None.

    Raises:
        EngineError: not text, no Unicode, or empty text.
    """
    if stop is None:
        return ()
    several = isinstance(stop, Sequence) and not isinstance(stop, str)
    stops: tuple[Any, ...] = tuple(stop) if several else (stop,)  # type: ignore[arg-type]
    for text in stops:
        if not isinstance(text, str) or not text:
            raise EngineError(f"stop={text!r} is not allowed", "a text that is not empty")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which no text holds
            raise EngineError("a stop string is not UTF-8", "give text that is UTF-8") from error
    return stops


def _check_count(
    name: str, value: object, least: int, allowed: str, most: float = math.inf
) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= most:  # type: ignore[operator]
        raise EngineError(f"{name}={value!r:.60} is not allowed", allowed)


def _check_number(name: str, value: object, least: float, most: float, allowed: str) -> None:
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # a whole number beyond what computing takes
        number = math.inf
    if isinstance(value, bool) or not least <= number <= most or number == math.inf:
        raise EngineError(f"{name}={value!r:.60} is not allowed", allowed)
