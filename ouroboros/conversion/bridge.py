"""The bridge, fitted in closed form to the original's own hidden states.

Between the prelude's end and the looped layer (or the coda) lay layers that are gone. Of what they
did to the hidden state a linear map does most: h + [h; 1] T, T by weighted ridge regression on
calibration text. Ours; nothing is trained for it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ouroboros.errors import DataError
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.model.pooling import describe_sequences
from ouroboros.model.prelude import run_prelude

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Regularisations tried, as parts of the mean diagonal of the Gram matrix."""

HELD_ASIDE = 5  # every so many windows one is kept from the fit, to choose the regularisation on
_BATCH = 8
TELL_S = 10  # between two lines of progress

Say = Callable[[str], None]


@dataclass(frozen=True)
class Fit:
    """A fitted map.

    Attributes:
        weight: T without its last row, transposed as nn.Linear has it, float32 `[hidden, hidden]`.
        bias: its last row, float32 `[hidden]`.
        strength: the regularisation that was chosen, of `STRENGTHS`.
        error: squared error on the windows held aside, as a part of what the identity leaves.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    strength: float
    error: float

    @torch.no_grad()
    def put(self, model: OuroborosForCausalLM) -> None:
        """Copies the map into a model's bridge; one without a bridge is left alone."""
        if model.bridge is not None:
            model.bridge.weight.copy_(self.weight)
            model.bridge.bias.copy_(self.bias)


@torch.no_grad()
def original_states(
    model: OuroborosForCausalLM,
    read: Callable[[int], dict[str, torch.Tensor]],
    windows: torch.Tensor,
    last: int,
    say: Say | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields what enters each layer of the original, from the prelude's end on.

    The layers are read one by one into the model's first looped layer, whose weights are lost; into
    one of its own where nothing is looped.

    Args:
        model: a model whose prelude is the original's, without modulation (as converted).
        read: returns the weights of a layer of the original model, by its number.
        windows: int64 `[windows, seq]`.
        last: the last layer whose input is wanted.
        say: called with a line of progress now and then, what the caller does between two layers
            counted.

    Yields:
        The layer's number and the state that enters it, float32 `[windows, seq, hidden]`. The
        tensor is changed when the next one is asked for.
    """
    count, length = windows.shape
    states = torch.empty(count, length, model.config.hidden_size)
    positions = torch.arange(length)[None]
    sequences = describe_sequences(1, length, 0, None, None, windows.device)
    inputs = model.layer_inputs(states[:1], positions, sequences)
    batches = [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]
    for batch in batches:
        states[batch] = run_prelude(model, windows[batch])
    number = model.config.prelude
    yield number, states
    looped, told_s = _layer_to_read_into(model), time.monotonic()
    while number < last:
        if say is not None and time.monotonic() - told_s >= TELL_S:
            say(f"running layer {number} of the original, up to {last - 1}")
            told_s = time.monotonic()
        looped.load_state_dict(read(number), strict=False)
        for batch in batches:
            states[batch] = looped(states[batch], **inputs)
        number += 1
        yield number, states


def _layer_to_read_into(model: OuroborosForCausalLM) -> nn.Module:
    looped = list(model.recurrent.layers)
    return looped[0] if looped else copy.deepcopy([*model.prelude, *model.coda][0])


@torch.no_grad()
def fit_bridge(source: torch.Tensor, target: torch.Tensor) -> Fit:
    """Fits target ≈ source + [source; 1] T.

    Each position weighs 1 / rms of its target, so that none counts for its size alone; the first
    position of a window, where a decoder parks attention in a state of enormous size, is left out.
    The regularisation is the one with the least error on windows held aside.

    Args:
        source: the states to map, float32 `[windows, seq, hidden]`.
        target: what they should become, of the same shape.

    Raises:
        DataError: there are fewer positions than the map has rows, so that it has no one fit.
    """
    width = source.shape[-1]
    aside = torch.zeros(len(source), dtype=torch.bool)
    aside[HELD_ASIDE - 1 :: HELD_ASIDE] = True
    if len(source) < HELD_ASIDE:
        aside[-1] = len(source) > 1
    count = int((~aside).sum()) * (source.shape[1] - 1)
    if count < width + 1:
        raise DataError(
            f"the calibration text gives the bridge {count:,} positions to fit on, which supports "
            f"a map of rank {count}, and it has {width + 1:,} rows",
            "give a longer --calibration text, or --bridge none",
        )
    products = _gram(source[~aside], target[~aside])
    held = _gram(source[aside], target[aside]) if bool(aside.any()) else products
    square, mixed, _ = products
    scale = square.diagonal()[:width].mean()
    best: tuple[float, float, torch.Tensor] | None = None
    for strength in STRENGTHS:
        ridge = torch.full((width + 1,), float(strength * scale), dtype=torch.float64)
        ridge[width] = 0.0  # the constant is not held back
        found = torch.linalg.solve(square + torch.diag(ridge), mixed)
        error = _left(found, held)
        if best is None or error < best[0]:
            best = error, strength, found
    assert best is not None  # STRENGTHS is not empty
    error, strength, found = best
    return Fit(found[:width].T.float().contiguous(), found[width].float(), strength, error)


def fit_entries(
    model: OuroborosForCausalLM,
    read: Callable[[int], dict[str, torch.Tensor]],
    windows: torch.Tensor,
    wanted: Mapping[int, Collection[int]],
    say: Say | None = None,
) -> dict[tuple[int, int], Fit]:
    """Fits the maps from the ends of preludes to the inputs of layers, in one pass over the text.

    Args:
        model: as for `original_states`, with the shortest of the preludes; its first looped layer's
            weights are lost.
        read: returns the weights of a layer of the original model, by its number.
        windows: calibration text, int64 `[windows, seq]`.
        wanted: by the number of layers in a prelude, the layers to fit a map to: their original
            numbers, none of them in that prelude.
        say: called with a line of progress now and then.

    Returns:
        The maps, by prelude and layer.
    """
    sources: dict[int, torch.Tensor] = {}
    fits: dict[tuple[int, int], Fit] = {}
    last = max(max(layers) for layers in wanted.values())
    for number, states in original_states(model, read, windows, last, say):
        if number in wanted:
            sources[number] = states.clone()
        for prelude in [one for one in sources if number in wanted[one]]:
            fits[prelude, number] = fit_bridge(sources[prelude], states)
        for prelude in [one for one in sources if number == max(wanted[one])]:
            del sources[prelude]  # of no more use, and as large as the text
    return fits


def states_before(
    model: OuroborosForCausalLM,
    read: Callable[[int], dict[str, torch.Tensor]],
    windows: torch.Tensor,
    layers: Collection[int],
    say: Say | None = None,
) -> dict[int, torch.Tensor]:
    """Returns what enters some layers of the original, float32 `[windows, seq, hidden]` each.

    Arguments are those of `original_states`; `layers` are behind the prelude.
    """
    return {
        number: states.clone()
        for number, states in original_states(model, read, windows, max(layers), say)
        if number in layers
    }


@torch.no_grad()
def fit_exit(
    model: OuroborosForCausalLM, windows: torch.Tensor, target: torch.Tensor, depth: int
) -> Fit:
    """Fits the map from the loop's end, after `depth` steps, to the coda's input.

    Args:
        model: as converted, but for its bridge.
        windows: calibration text, int64 `[windows, seq]`.
        target: the coda's input in the original, of `states_before`.
        depth: steps that the loop runs.
    """
    source = torch.empty(*windows.shape, model.config.hidden_size)

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        source[place] = inputs[0]

    # What enters the bridge is what the loop leaves, whatever the bridge makes of it.
    assert model.bridge is not None  # the caller has asked for one
    handle = model.bridge.register_forward_pre_hook(keep)
    try:
        for place in range(len(windows)):
            model(input_ids=windows[place][None], depth=depth, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return fit_bridge(source, target)


def _gram(
    source: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted sums over positions, float64: X'X `[d+1, d+1]`, X'Y `[d+1, d]` and |Y|² `[]`.

    X is [source; 1], Y what the map is to add.
    """
    width = source.shape[-1]
    square = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    mixed = torch.zeros(width + 1, width, dtype=torch.float64)
    size = torch.zeros((), dtype=torch.float64)
    for state, wanted in zip(source, target, strict=True):
        x, y = state[1:].double(), wanted[1:].double()
        weight = y.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-6).reciprocal()
        rows = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=-1)
        added = y - x
        square += (rows * weight).T @ rows
        mixed += (rows * weight).T @ added
        size += (added.pow(2) * weight).sum()
    return square, mixed, size


def _left(found: torch.Tensor, held: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
    """Weighted squared error of a map, as a part of what adding nothing leaves."""
    square, mixed, size = held
    error = size - 2 * (found * mixed).sum() + (found * (square @ found)).sum()
    return float(error / size)
