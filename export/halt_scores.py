"""Halting scores of PyTorch's own run, and thresholds that tell its rows apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ouroboros.model.modeling import OuroborosForCausalLM

Found = TypeVar("Found")
THRESHOLDS = 2  # recorded of a model with a halter


def watch_scores(
    model: OuroborosForCausalLM, run: Callable[[], Found]
) -> tuple[Found, NDArray[Any]]:
    """Runs something, and returns the score after each step beside it, float32 `[batch, steps]`.

    Of a row that has halted, the scores after that step mean nothing.

    Args:
        model: one with a halter.
        run: calls it once.
    """
    scores: list[torch.Tensor] = []
    if model.halter is None:
        raise ValueError("a model without a halter has no scores; this is a bug")
    handle = model.halter.register_forward_hook(
        lambda module, inputs, output: scores.append(output)
    )
    try:
        found = run()
    finally:
        handle.remove()
    return found, torch.stack(scores, 1).float().numpy()


def draw_thresholds(scores: NDArray[Any]) -> list[float]:
    """Thresholds at which rows halt at as many different steps as can be, far from every score.

    Args:
        scores: float32 `[batch, steps]` of a run in which none halts.
    """
    reachable = np.unique(scores[:, :-1])
    reachable = reachable[(reachable > 0) & (reachable < 1)]
    if len(reachable) < 2:
        return [0.5]
    middles = (reachable[1:] + reachable[:-1]) / 2

    def rank(place: int) -> tuple[int, float]:
        reached = scores >= middles[place]
        reached[:, -1] = True
        return len(set(reached.argmax(1).tolist())), float(reachable[place + 1] - reachable[place])

    best = sorted(range(len(middles)), key=rank, reverse=True)[:THRESHOLDS]
    return [float(np.float32(middles[place])) for place in best]
