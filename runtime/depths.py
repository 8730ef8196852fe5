"""The most there may be, and what is said of depths that a model was never trained at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_DEPTH = 4096
"""The most that a checkpoint or a bundle may be made for."""


def find_untrained(
    depths: Iterable[int], trained: Sequence[int], warned: Iterable[int]
) -> list[int]:
    """Returns the depths to warn of, ascending: each once, and once in all of no trained depth.

    Args:
        depths: that are run.
        trained: the model's trained depths; none of a model that was only converted.
        warned: of which was warned before.
    """
    told = set(warned)
    fresh = sorted(set(depths) - set(trained) - told)
    return [] if told and not trained else fresh


def describe_untrained(depths: Sequence[int], trained: Sequence[int]) -> str:
    """Returns what a warning says.

    Args:
        depths: which were never trained.
        trained: the model's trained depths; none of a model that was only converted.
    """
    if not trained:
        return "this model was never trained; expect poor text, or run `ouro train` first"
    shown, known = (", ".join(map(str, some)) for some in (depths, trained))
    return f"depth {shown} was never trained (trained: {known}); expect poorer text"
