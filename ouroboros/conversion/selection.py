"""Choices made by measurement at conversion: the looped layer, and the scale of the step norms.

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
from ouroboros.model.modeling import OuroborosForCausalLM


@dataclass(frozen=True)
class Candidate:
    """One layer tried as the looped one.

    Attributes:
        layer: its index in the original model.
        loss_at_one: calibration loss at depth 1, nats per token.
        loss_at_depth: calibration loss at the depth asked for, nats per token.
    """

    layer: int
    loss_at_one: float
    loss_at_depth: float


@torch.no_grad()
def calibration_loss(model: OuroborosForCausalLM, windows: torch.Tensor, depth: int) -> float:
    """Returns the mean next-token loss in nats on int64 `[windows, seq]`, one by one."""
    total = 0.0
    for window in windows:
        logits = model(input_ids=window[None], depth=depth, use_cache=False).logits[0]
        total += float(functional.cross_entropy(logits[:-1].float(), window[1:]))
    return total / len(windows)


@torch.no_grad()
def match_step_norms(model: OuroborosForCausalLM, windows: torch.Tensor, depth: int) -> None:
    """Sets each step's norm weight to the RMS of the layer's own output at that step.

    One pass does it: the RMS of a step is measured and set before its norm is applied, so the
    next step sees what it will see later. Steps past `depth` repeat the last.
    """
    weight = model.recurrent.norm.weight
    step = 0

    def measure(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal step
        weight[step] = output.float().pow(2).mean().sqrt()
        step += 1

    handle = model.recurrent.layer.register_forward_hook(measure)
    try:
        model(input_ids=windows, depth=depth, use_cache=False, logits_to_keep=1)
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
    """Tries every candidate as the looped layer; returns them, the best at `depth` first.

    The Controller's heads are zero at conversion, so the bases don't matter here.

    Args:
        model: its looped layer is replaced by each candidate.
        read: returns the weights of a layer of the original model, by its number.
        candidates: numbers of the layers to try.
        windows: calibration text, int64 `[windows, seq]`.
        depth: at which they are compared.
        report: gets a table, a row as soon as it is measured.
        fits: the bridge to each candidate's input; none where the model has no such bridge.
    """
    tried = []
    report("calibration loss of every candidate for the looped layer, nats per token")
    report(f"{'layer':>7}  {'at depth 1':>12}  {f'at depth {depth}':>12}")
    for number, layer in enumerate(candidates, start=1):
        model.recurrent.layer.load_state_dict(read(layer), strict=False)
        if fits:
            fits[layer].put(model)
        if model.config.norm_init == "matched":
            match_step_norms(model, windows, depth)
        losses = [calibration_loss(model, windows, d) for d in (1, depth)]
        tried.append(Candidate(layer, *losses))
        report(f"{layer:>7}  {losses[0]:>12.3f}  {losses[1]:>12.3f}  {number} of {len(candidates)}")
    ranked = sorted(tried, key=lambda c: (c.loss_at_depth, c.layer))
    report(f"looping layer {ranked[0].layer}, the best at depth {depth}")
    return ranked
