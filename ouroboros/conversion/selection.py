"""Choices made by measurement at conversion: the looped layers, and the scale of the step norms.

Both look at calibration text only, never at held-out text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ouroboros.conversion.bridge import Fit
from ouroboros.model.block import name_block
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.model.prelude import run_prelude


@dataclass(frozen=True)
class Candidate:
    """One layer, or one block of them, tried as the looped one.

    Attributes:
        layer: index of its first layer in the original model.
        loss_at_one: calibration loss at depth 1, nats per token.
        loss_at_depth: calibration loss at the depth asked for, nats per token.
    """

    layer: int
    loss_at_one: float
    loss_at_depth: float


@torch.no_grad()
def calibration_loss(
    model: OuroborosForCausalLM, windows: torch.Tensor, states: Sequence[torch.Tensor], depth: int
) -> float:
    """Returns the mean next-token loss in nats on int64 `[windows, seq]`, one by one.

    `states` are what the prelude leaves of each, `[1, seq, hidden]`: it is the same for all.
    """
    total = 0.0
    for window, state in zip(windows, states, strict=True):
        logits = model(prelude_state=state, depth=depth, use_cache=False).logits[0]
        total += float(functional.cross_entropy(logits[:-1].float(), window[1:]))
    return total / len(windows)


@torch.no_grad()
def match_step_norms(model: OuroborosForCausalLM, state: torch.Tensor, depth: int) -> None:
    """Sets each step's norm weight to the RMS of the looped layers' own output at that step.

    One pass does it: the RMS of a step is measured and set before its norm is applied, so the
    next step sees what it will see later. Steps past `depth` repeat the last.

    Args:
        model: its norms are set.
        state: what the prelude leaves of calibration text, `[windows, seq, hidden]`.
        depth: steps to measure.
    """
    weight = model.recurrent.norm.weight
    step = 0

    def measure(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal step
        weight[step] = output.float().pow(2).mean().sqrt()
        step += 1

    handle = model.recurrent.layers[-1].register_forward_hook(measure)
    try:
        model(prelude_state=state, depth=depth, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    weight[depth:] = weight[depth - 1]


def select_recurrent(
    model: OuroborosForCausalLM,
    read: Callable[[int], dict[str, torch.Tensor]],
    candidates: Sequence[int],
    windows: torch.Tensor,
    depth: int,
    report: Callable[[str], None],
    fits: Mapping[int, Fit] | None = None,
) -> list[Candidate]:
    """Tries every candidate as the looped part; returns them, the best at `depth` first.

    The Controller's heads are zero at conversion, so the bases don't matter here.

    Args:
        model: its looped layers are replaced by each candidate's.
        read: returns the weights of a layer of the original model, by its number.
        candidates: numbers of the layers to try; of a block that of its first layer.
        windows: calibration text, int64 `[windows, seq]`.
        depth: at which they are compared.
        report: gets a table, a row as soon as it is measured.
        fits: the bridge to each candidate's input; none where the model has no such bridge.
    """
    tried = []
    states = [run_prelude(model, window[None]) for window in windows]
    count = model.config.recurrent_layers
    report(f"calibration loss of every candidate for the looped {_words(count)}, nats per token")
    report(f"{_words(count):>7}  {'at depth 1':>12}  {f'at depth {depth}':>12}")
    for number, layer in enumerate(candidates, start=1):
        load_block(model, read, layer)
        if fits:
            fits[layer].put(model)
        if model.config.norm_init == "matched":
            match_step_norms(model, torch.cat(states), depth)
        losses = [calibration_loss(model, windows, states, d) for d in (1, depth)]
        tried.append(Candidate(layer, *losses))
        label = name_block(layer, count).split()[-1]
        report(f"{label:>7}  {losses[0]:>12.3f}  {losses[1]:>12.3f}  {number} of {len(candidates)}")
    ranked = sorted(tried, key=lambda c: (c.loss_at_depth, c.layer))
    report(f"looping {name_block(ranked[0].layer, count)}, the best at depth {depth}")
    return ranked


def _words(count: int) -> str:
    return "layer" if count == 1 else "layers"


def load_block(
    model: OuroborosForCausalLM, read: Callable[[int], dict[str, torch.Tensor]], first: int
) -> None:
    """Reads consecutive layers of the original model into the looped ones, `first` first."""
    for number, layer in enumerate(model.recurrent.layers, start=first):
        layer.load_state_dict(read(number), strict=False)
