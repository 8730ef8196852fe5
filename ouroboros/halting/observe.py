"""What a model gives at every depth: the loss of what follows a prompt, and what a halter sees.

A depth is chosen on a prompt and stays fixed, for the prompt's own tokens too. So the loss that
counts for a depth is that of the text after the prompt with all of it run at that depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ouroboros.errors import ConfigError, DataError
from ouroboros.model.halting import Halter, Reading
from ouroboros.model.pooling import describe_sequences, widen

if TYPE_CHECKING:
    import numpy as np

    from ouroboros.model.modeling import OuroborosForCausalLM

EVERY = 2
"""Of the positions after a prompt every second one is scored: the head costs what 8 layers do."""

ALL_READ = 8
"""Up to so many depths each is read out through the coda; of more, some, and lines between them."""

_ROWS = 128  # prompts whose logits over the vocabulary are held at once


@dataclass(frozen=True)
class Observations:
    """What N prompts gave at depths 1..D.

    Attributes:
        losses: float32 `[N, D]`, mean next-token loss of what follows the prompt, nats.
        readings: after each of the D steps, `[N, hidden]` each.
    """

    losses: torch.Tensor
    readings: tuple[Reading, ...]

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self.losses)

    @property
    def depth(self) -> int:
        """The most steps."""
        return len(self.readings)

    def part(self, chosen: torch.Tensor) -> Observations:
        """Those of some prompts, by their numbers or a mask."""
        readings = (Reading(r.old[chosen], r.new[chosen], r.mean[chosen]) for r in self.readings)
        return Observations(self.losses[chosen], tuple(readings))


def read_depths(depth: int) -> list[int]:
    """Returns the depths that are read out of 1..`depth`, both ends among them."""
    if depth <= ALL_READ:
        return list(range(1, depth + 1))
    ratio = depth ** (1 / (ALL_READ - 1))
    return sorted({1, depth, *(round(ratio**place) for place in range(ALL_READ))})


@torch.no_grad()
def observe(
    model: OuroborosForCausalLM,
    windows: np.ndarray,
    ends: Sequence[int],
    depth: int,
    advance: Callable[[int], None] | None = None,
    every: int = EVERY,
) -> Observations:
    """Runs the loop once over each window and reads it out at many depths.

    Args:
        model: in eval mode.
        windows: int64 `[windows, seq]`, each a text of its own.
        ends: lengths of the prompts that each window is cut into, ascending; below seq.
        depth: the most steps.
        advance: called after each window with 1.
        every: of the positions after a prompt, the first and every so manyth is scored.

    Returns:
        Those of window 0, an entry an end, then of window 1, and so on.

    Raises:
        ConfigError: the model pools the mean of the whole text.
        DataError: an end leaves no prompt or nothing after it.
    """
    if model.config.pooling == "mean":
        raise ConfigError(
            "with pooling=mean every step reads the tokens that are to be predicted, so that no "
            "depth of a prompt can be judged on a whole window",
            "convert with --pooling causal or token",
        )
    if not ends or not 1 <= min(ends) <= max(ends) < windows.shape[1]:
        raise DataError(
            f"prompts of {list(ends)} of {windows.shape[1]} tokens",
            "each must leave a token before and after it",
        )
    found = []
    for window in windows:
        ids = torch.from_numpy(window)[None].to(next(model.parameters()).device)
        found.append(_observe_window(model, ids, list(ends), depth, every))
        if advance is not None:
            advance(1)
    return join(found)


def join(parts: Sequence[Observations]) -> Observations:
    """Those of several windows or texts as one, in their order."""
    readings = (
        Reading(*(torch.cat([getattr(r, part) for r in step]) for part in ("old", "new", "mean")))
        for step in zip(*(one.readings for one in parts), strict=True)
    )
    return Observations(torch.cat([one.losses for one in parts]), tuple(readings))


def _observe_window(
    model: OuroborosForCausalLM, ids: torch.Tensor, ends: list[int], depth: int, every: int
) -> Observations:
    length = ids.shape[1]
    states: list[torch.Tensor] = []
    handle = model.recurrent.register_forward_hook(
        lambda module, inputs, output: states.extend([inputs[0], output])
    )
    try:
        last = model(
            input_ids=ids,
            depth=depth,
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=1,
        ).hidden_states[-1]
    finally:
        handle.remove()
    positions = torch.arange(length, device=ids.device)[None]
    sequences = describe_sequences(1, length, 0, None, None, ids.device)
    inputs = model.layer_inputs(last, positions, sequences)
    places = torch.arange(ends[0] - 1, length - 1, every, device=ids.device)
    read = read_depths(depth)
    losses = []
    for one in read:
        final = last if one == depth else model.leave(states[2 * one - 1], inputs)
        logits = widen(model.lm_head(final[0, places]))
        each = functional.cross_entropy(logits, ids[0, places + 1], reduction="none")
        losses.append(torch.stack([each[places >= end - 1].mean() for end in ends]))
    at = torch.tensor(ends, device=ids.device) - 1
    counts = torch.arange(1, length + 1, device=ids.device)[:, None]
    readings = [
        Reading(widen(old[0, at]), widen(new[0, at]), (widen(new[0]).cumsum(0) / counts)[at])
        for old, new in zip(states[::2], states[1::2], strict=True)
    ]
    return Observations(_fill(torch.stack(losses, 1), read, depth), tuple(readings))


def _fill(losses: torch.Tensor, read: list[int], depth: int) -> torch.Tensor:
    """Draws lines between the depths `read`: `[N, len(read)]` to `[N, depth]`."""
    filled = losses.new_empty(len(losses), depth)
    filled[:, 0] = losses[:, 0]
    for place, (low, high) in enumerate(pairwise(read)):
        for one in range(low + 1, high + 1):
            share = (one - low) / (high - low)
            filled[:, one - 1] = losses[:, place] * (1 - share) + losses[:, place + 1] * share
    return filled


def halting_scores(
    halter: Halter, observations: Observations, model: OuroborosForCausalLM
) -> torch.Tensor:
    """Returns the halting score after each step, `[N, D]`."""
    rows = []
    for first in range(0, len(observations), _ROWS):
        one = observations.part(torch.arange(first, min(first + _ROWS, len(observations))))
        score = one.losses.new_zeros(len(one))
        scores = []
        for step, reading in enumerate(one.readings):
            score = halter(score, reading, step, model.read_out)
            scores.append(score)
        rows.append(torch.stack(scores, 1))
    return torch.cat(rows)


def chosen_depths(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Returns the depth that each row of `[N, D]` scores halts at, int64 `[N]`; 0 halts none."""
    depth = scores.shape[1]
    reached = scores >= threshold
    reached[:, -1] = True
    if threshold == 0:
        return torch.full((len(scores),), depth, device=scores.device)
    return reached.long().argmax(1) + 1
