"""Choices made by measurement at conversion: split, looped layers, bridge and step norms' scale.

All look at calibration text only, never at held-out text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ouroboros.conversion.bridge import Fit, Say, fit_entries, fit_exit, states_before
from ouroboros.conversion.splits import Split, list_splits, move_split, name_split, shortlist
from ouroboros.model.block import name_block
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.model.prelude import run_prelude


@dataclass(frozen=True)
class Candidate:
    """One layer, or one block of them, tried as the looped one between a prelude and a coda.

    Attributes:
        layer: index of its first layer in the original model.
        prelude: first layers kept.
        coda: last layers kept.
        loss_at_one: calibration loss at depth 1, nats per token.
        loss_at_depth: calibration loss at the depth asked for, nats per token.
    """

    layer: int
    prelude: int
    coda: int
    loss_at_one: float
    loss_at_depth: float


@dataclass(frozen=True)
class Scale:
    """What candidates are weighed with.

    Attributes:
        model: made into each candidate in turn.
        read: returns the weights of a layer of the original model, by its number.
        windows: calibration text for the bridge, int64 `[windows, seq]`.
        few: calibration text to measure losses and norms on, int64 `[windows, seq]`.
        depth: at which candidates are compared.
        entries: by prelude and layer the bridge at the loop's entry, where there is one.
        exits: by the coda's first layer what enters it in the original, float32
            `[windows, seq, hidden]`, where the bridge stands at the loop's exit.
    """

    model: OuroborosForCausalLM
    read: Callable[[int], dict[str, torch.Tensor]]
    windows: torch.Tensor
    few: torch.Tensor
    depth: int
    entries: Mapping[tuple[int, int], Fit]
    exits: Mapping[int, torch.Tensor]

    def make(self, layer: int, state: torch.Tensor, say: Say | None = None) -> None:
        """Loops a layer between the model's prelude and coda: weights, bridge and step norms.

        Args:
            layer: original number of the first looped layer.
            state: what the prelude leaves of `few`, `[windows, seq, hidden]`.
            say: called with a line for each part that takes long.
        """
        say = say or (lambda line: None)
        config = self.model.config
        config.recurrent = layer
        load_block(self.model, self.read, layer)
        if self.entries:
            self.entries[config.prelude, layer].put(self.model)
        if config.norm_init == "matched":
            say(f"matching the norms of {self.depth} steps on {self.few.numel():,} tokens")
            match_step_norms(self.model, state, self.depth)
        if self.exits:
            say(f"fitting the bridge on {self.windows.numel():,} tokens")
            target = self.exits[config.original_layers - config.coda]
            fit_exit(self.model, self.windows, target, self.depth).put(self.model)

    def weigh(self, split: Split, layers: Sequence[int], row: Callable[[Candidate], None]) -> None:
        """Measures layers as the looped one of a split; `row` gets each as soon as it is done."""
        move_split(self.model, self.read, split)
        state = run_prelude(self.model, self.few)
        for layer in layers:
            self.make(layer, state)
            losses = [calibration_loss(self.model, self.few, state, d) for d in (1, self.depth)]
            row(Candidate(layer, *split, *losses))


@torch.no_grad()
def calibration_loss(
    model: OuroborosForCausalLM, windows: torch.Tensor, state: torch.Tensor, depth: int
) -> float:
    """Returns the mean next-token loss in nats on int64 `[windows, seq]`, one by one.

    `state` is what the prelude leaves of them, `[windows, seq, hidden]`: it is the same for all.
    """
    total = 0.0
    for place, window in enumerate(windows):
        before = state[place : place + 1]
        logits = model(prelude_state=before, depth=depth, use_cache=False).logits[0]
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


def choose_parts(
    model: OuroborosForCausalLM,
    read: Callable[[int], dict[str, torch.Tensor]],
    windows: torch.Tensor,
    few: torch.Tensor,
    layer: int | None,
    any_split: bool,
    depth: int,
    say: Say,
) -> list[Candidate]:
    """Chooses split and looped layers where they are not named; sets bridge and step norms.

    The Controller's heads are zero at conversion, so the bases don't matter here. The original runs
    over the text once, for the bridges of all candidates. First every layer is tried at the split
    that the model has, then every other split with the layers that were best.

    Args:
        model: as taken over; it is left as the best candidate.
        read: returns the weights of a layer of the original model, by its number.
        windows: calibration text for the bridge, int64 `[windows, seq]`.
        few: calibration text to measure losses and norms on, int64 `[windows, seq]`.
        layer: original number of the first looped layer, None to find it.
        any_split: find prelude and coda too, as many layers as the model's together.
        depth: at which candidates are compared.
        say: gets a table, a row as soon as it is measured.

    Returns:
        The candidates that were measured, the best at `depth` first; none where nothing is chosen.
    """
    config = model.config
    given = config.prelude, config.coda
    blocks = config.original_layers - sum(given) - config.recurrent_layers + 1
    possible = {
        split: [one for one in range(split[0], split[0] + blocks) if layer in (None, one)]
        for split in (list_splits(*given) if any_split else [given])
    }
    scale = _fit(model, read, windows, few, possible, depth, say)
    found: list[Candidate] = []
    if layer is None or any_split:
        _weigh_layers(scale, given, possible[given], found, say)
        if any_split:
            _weigh_splits(scale, given, possible, found, say)
        first = _ranked(found)[0]
        layer, chosen = first.layer, (first.prelude, first.coda)
        kept = f"keeping {name_split(chosen)} and " if any_split else ""
        say(
            f"{kept}looping {name_block(layer, config.recurrent_layers)}, the best at depth {depth}"
        )
        move_split(model, read, chosen)
    scale.make(layer, run_prelude(model, few), say)
    return _ranked(found)


def _fit(
    model: OuroborosForCausalLM,
    read: Callable[[int], dict[str, torch.Tensor]],
    windows: torch.Tensor,
    few: torch.Tensor,
    possible: Mapping[Split, Sequence[int]],
    depth: int,
    say: Say,
) -> Scale:
    """Runs the original over the text once, for what the bridges of all candidates need of it."""
    config = model.config
    given = config.prelude, config.coda
    entries: dict[tuple[int, int], Fit] = {}
    exits: dict[int, torch.Tensor] = {}
    if config.bridge != "none":
        move_split(model, read, min(possible))  # the shortest prelude: all states lie behind it
        if config.bridge == "entry":
            say(f"fitting the bridge on {windows.numel():,} tokens")
            wanted = {prelude: layers for (prelude, _), layers in possible.items() if layers}
            entries = fit_entries(model, read, windows, wanted, say)
        else:
            starts = {config.original_layers - coda for _, coda in possible}
            say(f"running the original on {windows.numel():,} tokens")
            exits = states_before(model, read, windows, starts, say)
        move_split(model, read, given)
    return Scale(model, read, windows, few, depth, entries, exits)


def _weigh_layers(
    scale: Scale, split: Split, layers: Sequence[int], found: list[Candidate], say: Say
) -> None:
    count, depth = scale.model.config.recurrent_layers, scale.depth
    say(f"calibration loss of every candidate for the looped {_words(count)}, nats per token")
    say(f"{_words(count):>7}  {'at depth 1':>12}  {f'at depth {depth}':>12}")

    def row(one: Candidate) -> None:
        found.append(one)
        say(f"{_number(one, count):>7}  {_losses(one)}  {len(found)} of {len(layers)}")

    scale.weigh(split, layers, row)


def _weigh_splits(
    scale: Scale,
    given: Split,
    possible: Mapping[Split, Sequence[int]],
    found: list[Candidate],
    say: Say,
) -> None:
    count, depth = scale.model.config.recurrent_layers, scale.depth
    best = [one.layer for one in _ranked(found)]
    listed = {split: shortlist(best, given, split, possible[split]) for split in possible}
    del listed[given]
    total, done = sum(map(len, listed.values())), len(found)
    say(
        f"calibration loss of other splits with what was best at {name_split(given)}, by number "
        f"and by place: {total} of {sum(map(len, possible.values())) - done} candidates"
    )
    say(f"  split  {_words(count):>7}  {'at depth 1':>12}  {f'at depth {depth}':>12}")

    def row(one: Candidate) -> None:
        found.append(one)
        split = name_split((one.prelude, one.coda))
        number = f"{len(found) - done} of {total}"
        say(f"{split:>7}  {_number(one, count):>7}  {_losses(one)}  {number}")

    for split, layers in listed.items():
        if layers:
            scale.weigh(split, layers, row)


def _ranked(found: Sequence[Candidate]) -> list[Candidate]:
    return sorted(found, key=lambda one: (one.loss_at_depth, one.layer))


def _words(count: int) -> str:
    return "layer" if count == 1 else "layers"


def _number(one: Candidate, count: int) -> str:
    return name_block(one.layer, count).split()[-1]


def _losses(one: Candidate) -> str:
    return f"{one.loss_at_one:>12.3f}  {one.loss_at_depth:>12.3f}"


def load_block(
    model: OuroborosForCausalLM, read: Callable[[int], dict[str, torch.Tensor]], first: int
) -> None:
    """Reads consecutive layers of the original model into the looped ones, `first` first."""
    for number, layer in enumerate(model.recurrent.layers, start=first):
        layer.load_state_dict(read(number), strict=False)
