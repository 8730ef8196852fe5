"""Carries calibration text through a model block by block, while its blocks are quantised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ouroboros.model.modeling import OuroborosForCausalLM

BATCH = 4


def blocks_in_order(model: OuroborosForCausalLM) -> list[tuple[str, nn.Module]]:
    """Returns what the hidden state passes, by the prefix of its parameters: layers and bridge."""
    bridge = [] if model.bridge is None else [("bridge", model.bridge)]
    entry = model.config.bridge == "entry"
    return [
        *((f"prelude.{i}", layer) for i, layer in enumerate(model.prelude)),
        *(bridge if entry else []),
        ("recurrent", model.recurrent),
        *([] if entry else bridge),
        *((f"coda.{i}", layer) for i, layer in enumerate(model.coda)),
    ]


@dataclass(frozen=True)
class Call:
    """How the model calls a block, but for the hidden state: arguments after it, and by name."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]


class CalibrationRun:
    """The hidden states of a text before one block after the other.

    What a block is fed has passed the quantised blocks before it, so that GPTQ makes up for their
    errors too. Every block runs twice a text, whatever the number of blocks.

    Attributes:
        hidden: float32 `[windows, seq, hidden]`, a tensor a batch, as the next block is fed it.
    """

    def __init__(self, model: OuroborosForCausalLM, windows: torch.Tensor, depth: int) -> None:
        """Reads the text up to the first block.

        Args:
            model: float32, eval mode.
            windows: int64 `[windows, seq]`.
            depth: steps that the recurrent layer is run for.
        """
        self._recurrent, self._depth = model.recurrent, depth
        blocks = [block for _, block in blocks_in_order(model)]
        batches = windows.split(BATCH)
        self._calls = [_watch_calls(model, blocks, batch) for batch in batches]
        self.hidden: list[torch.Tensor] = [model.embed_tokens(batch) for batch in batches]

    def second_moments(
        self, block: nn.Module, linears: Mapping[str, nn.Linear]
    ) -> dict[str, torch.Tensor]:
        """Sums x xT over all that each matrix of a block is fed, in every step.

        Args:
            block: the next one.
            linears: its matrices by name.

        Returns:
            float32 `[in, in]` by name.
        """
        sums = {linear: torch.zeros((linear.in_features,) * 2) for linear in linears.values()}
        with summing(sums):
            self._run(block)
        return {name: sums[linear] for name, linear in linears.items()}

    def advance(self, block: nn.Module) -> None:
        """Replaces the hidden states by what the block makes of them."""
        self.hidden = self._run(block)

    def _run(self, block: nn.Module) -> list[torch.Tensor]:
        results = []
        for hidden, calls in zip(self.hidden, self._calls, strict=True):
            call = calls[block]
            if block is self._recurrent:
                # The state at the loop's entry, where it is injected, has changed since.
                named = call.named | {"entry": hidden} if "entry" in call.named else call.named
                for step in range(self._depth):
                    hidden = block(hidden, step, *call.arguments[1:], **named)
            else:
                hidden = block(hidden, *call.arguments, **call.named)
            results.append(hidden)
        return results


def _watch_calls(
    model: OuroborosForCausalLM, blocks: list[nn.Module], batch: torch.Tensor
) -> dict[nn.Module, Call]:
    """Runs the model once and notes masks, positions and what else it gives its blocks."""
    calls: dict[nn.Module, Call] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls[module] = Call(arguments[1:], named)

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    with _removing(handles):
        model(input_ids=batch, depth=1, use_cache=False, logits_to_keep=1)
    return calls


@contextmanager
def summing(sums: Mapping[nn.Linear, torch.Tensor]) -> Iterator[None]:
    """Adds up, while it lasts, what matrices are fed, over all positions.

    Args:
        sums: float32 `[in, in]` for the sum of x xT, or `[in]` for its diagonal.
    """

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        total = sums[cast("nn.Linear", module)]
        if total.ndim == 1:
            total.add_(x.square().sum(0))
        else:
            total.addmm_(x.T, x)

    with _removing([linear.register_forward_hook(record) for linear in sums]):
        yield


@contextmanager
def _removing(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
