"""One call of the model: what it runs on, and the way through prelude, loop and coda."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ouroboros.errors import ConfigError
from ouroboros.model.arguments import (
    Depth,
    check_backprop_steps,
    check_continuation,
    check_shapes,
    refuse_attentions,
    refuse_prelude_cache,
)
from ouroboros.model.cache import CACHE, OuroborosCache
from ouroboros.model.generation import count_positions
from ouroboros.model.halting import Halting, begin_halting
from ouroboros.model.pooling import Sequences, describe_sequences
from ouroboros.model.recompute import run_layer

if TYPE_CHECKING:
    from ouroboros.model.modeling import OuroborosForCausalLM


@dataclass(frozen=True)
class Call:
    """What one call runs on.

    Attributes:
        given: int64 `[B, S]` token ids, or `[B, S, hidden]` embeddings or states.
        behind_prelude: `given` is what the prelude made.
        positions: int64 `[B, S]`.
        sequences: which of the slots belong together.
        cache: to be read and filled; None where there is none.
        steps: of the loop.
        rows: int64 `[B]` steps of each row; None where all have `steps`.
        first: the first step that gradients go back through.
        halting: stops rows before their depth; None where nothing does.
        record: what enters each layer and step is kept.
    """

    given: torch.Tensor
    behind_prelude: bool
    positions: torch.Tensor
    sequences: Sequences
    cache: OuroborosCache | None
    steps: int
    rows: torch.Tensor | None
    first: int
    halting: Halting | None
    record: bool

    @property
    def depth_used(self) -> torch.Tensor | None:
        """int64 `[B]` steps that each row had, once it ran; None where nothing halts."""
        return None if self.halting is None else self.halting.depth_used


def open_call(
    model: OuroborosForCausalLM,
    given: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: OuroborosCache | None,
    use_cache: bool | None,
    depth: Depth | None,
    halt_threshold: float | None,
    backprop_steps: int | None,
    *,
    behind_prelude: bool,
    record: bool | None,
) -> Call:
    """Settles what a call runs on, of the arguments of the model's `forward`.

    Raises:
        ConfigError: as there.
    """
    if model.config.output_attentions:
        refuse_attentions()
    batch, new = given.shape[:2]
    past = cache.get_seq_length() if cache is not None else 0
    check_shapes(batch, new, past, attention_mask, position_ids)
    if behind_prelude:
        refuse_prelude_cache(use_cache, cache)
        use_cache = False
    steps, rows = model.row_depths(depth, batch)
    sequences = describe_sequences(batch, new, past, attention_mask, position_ids, given.device)
    positions = position_ids
    if positions is None:
        positions = count_positions(attention_mask, past, batch, new, given.device)
    return Call(
        given,
        behind_prelude,
        positions,
        sequences,
        _open_cache(model, cache, use_cache, sequences, batch, steps),
        steps,
        rows,
        steps - check_backprop_steps(backprop_steps, steps),
        begin_halting(model, halt_threshold, past, sequences),
        bool(model.config.output_hidden_states if record is None else record),
    )


def run_call(
    model: OuroborosForCausalLM, call: Call
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """Runs prelude, loop and coda.

    Returns:
        What enters the LM head `[B, S, hidden]`, and what entered each layer and step before it,
        it last; None where the call keeps none.
    """
    given, cache, halting = call.given, call.cache, call.halting
    entered: list[torch.Tensor] = []
    note = entered.append if call.record else lambda state: None
    trained = (*model.embed_tokens.parameters(), *model.prelude.parameters())
    # Embeddings given by the caller (soft prompts) may be what trains.
    frozen = not given.requires_grad and not any(one.requires_grad for one in trained)
    again = model.recompute and cache is None
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        hidden = given if given.is_floating_point() else model.embed_tokens(given)
        layer_inputs = model.layer_inputs(hidden, call.positions, call.sequences)
        for layer in () if call.behind_prelude else model.prelude:
            note(hidden)
            hidden = run_layer(layer, again, hidden, **{CACHE: cache}, **layer_inputs)
    if model.bridge is not None and model.config.bridge == "entry":
        hidden = model.bridge(hidden)
    injected = {} if model.recurrent.injection is None else {"entry": hidden}
    for step in range(call.steps):
        note(hidden)
        if step == call.first > 0:  # a weight that was cast without a graph is to be cast with one
            torch.clear_autocast_cache()
        inputs = (hidden, step, call.sequences, cache)
        with torch.set_grad_enabled(torch.is_grad_enabled() and step >= call.first):
            new_hidden = run_layer(model.recurrent, again, *inputs, **injected, **layer_inputs)
            active = None if call.rows is None else step < call.rows
            if halting is not None:
                active = halting.going if active is None else active & halting.going
                halting.take(step, active, hidden, new_hidden)
            if active is not None:
                new_hidden = torch.where(active[:, None, None], new_hidden, hidden)
        hidden = new_hidden
    hidden = model.leave(hidden, layer_inputs, cache, note)
    return hidden, (*entered, hidden) if call.record else None


def _open_cache(
    model: OuroborosForCausalLM,
    cache: OuroborosCache | None,
    use_cache: bool | None,
    sequences: Sequences,
    batch: int,
    steps: int,
) -> OuroborosCache | None:
    """The cache of a call: the one given, a new one where one is asked for, or none."""
    packed = sequences.documents is not None
    if use_cache is None:
        use_cache = model.config.use_cache and not model.training and not packed
    if use_cache and cache is None:
        cache = OuroborosCache(model.config.num_layers)
    if cache is None:
        return None
    if packed:
        raise ConfigError(
            "packed documents (position_ids that restart at 0) have no cache",
            "pass use_cache=False, or one document a row",
        )
    check_continuation(cache, batch, steps, model.config.recurrent_layers)
    return cache
