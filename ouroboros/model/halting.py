"""When a row has had enough steps: a halting score, read off h where its prompt ends.

A row halts once its score reaches the threshold; it has then had `depth_used` steps, at least one.
The score after a step is

- `trained`: the probability of having halted, s + (1 - s) p: the sum of what PonderNet calls the
  halting distribution, with p = sigmoid(w [rms(h); rms(mean of h)] + b of the step);
- `confidence`: the probability of the likeliest token, read off h alone, without the coda;
- `distance`: 1 - |h' - h| / |h'|, which is 1 where a step changes nothing. Nothing is trained.

Each is a sum of halting values, those of the last two of differences. All of it in float32.

Source: PonderNet (arXiv 2107.05407, section 2) and ACT (1603.08983, section 2) for the sum and the
threshold; CALM (2207.07061, section 3.1) for confidence and for the distance of states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from ouroboros.errors import ConfigError
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.halters import check_threshold
from ouroboros.model.modulation import normalise
from ouroboros.model.pooling import Sequences, widen

if TYPE_CHECKING:
    from ouroboros.model.modeling import OuroborosForCausalLM


@dataclass
class LoopedOutput(CausalLMOutputWithPast):
    """What the model returns.

    Attributes:
        depth_used: int64 `[batch]`, steps that each row has had; None where no threshold was given.
    """

    depth_used: torch.Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """What a step leaves of each row, float32 `[..., hidden]`.

    Attributes:
        old: h before the step, at the last valid position.
        new: h after it, there.
        mean: h after it, averaged over the valid positions.
    """

    old: torch.Tensor
    new: torch.Tensor
    mean: torch.Tensor


class Halter(nn.Module):
    """The halting score after each step; with weights of its own only where it is trained."""

    def __init__(self, config: OuroborosConfig) -> None:
        """A trained halter starts at zero: every step halts half of what is left."""
        super().__init__()
        self.kind = config.halter
        if self.kind == "trained":
            self.weight = nn.Parameter(torch.zeros(2 * config.hidden_size))
            self.bias = nn.Parameter(torch.zeros(config.max_depth))

    def forward(
        self,
        score: torch.Tensor,
        reading: Reading,
        step: int,
        read_out: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Returns the score after step `step`.

        Args:
            score: before it, float32 `[...]`.
            reading: of it.
            step: from 0.
            read_out: final norm and LM head, `[..., hidden]` to `[..., vocab]`.
        """
        match self.kind:
            case "trained":
                logit = halting_features(reading) @ widen(self.weight) + widen(self.bias[step])
                return score + (1 - score) * torch.sigmoid(logit)
            case "confidence":
                return torch.softmax(widen(read_out(reading.new)), dim=-1).amax(-1)
            case _:
                moved, size = (reading.new - reading.old).norm(dim=-1), reading.new.norm(dim=-1)
                still: torch.Tensor = 1 - moved / size.clamp(min=torch.finfo(size.dtype).tiny)
                return still


def halting_features(reading: Reading) -> torch.Tensor:
    """Returns what a trained halter sees, float32 `[..., 2 * hidden]`."""
    return torch.cat([normalise(reading.new), normalise(reading.mean)], dim=-1)


class Halting:
    """Which rows of a call go on, step by step.

    Attributes:
        score: float32 `[batch]` (float64 where the model is), frozen once a row has halted.
        depth_used: int64 `[batch]`, steps that each row has had so far.
    """

    def __init__(
        self,
        halter: Halter,
        threshold: float,
        sequences: Sequences,
        read_out: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Begins a call.

        Args:
            halter: of the model.
            threshold: of the score; 0 halts nothing.
            sequences: of the call, which must hold the whole prompt of every row.
            read_out: final norm and LM head.

        Raises:
            ConfigError: the rows hold packed documents.
        """
        if sequences.documents is not None:
            raise ConfigError(
                "packed documents (position_ids that restart at 0) have no depth of their own",
                "give one document a row, or leave out halt_threshold",
            )
        self._halter, self._threshold, self._read_out = halter, threshold, read_out
        self._valid = valid = sequences.valid
        slots = torch.arange(valid.shape[1], device=valid.device)
        self._last = (slots * valid).argmax(-1)[:, None, None]
        self.score = torch.zeros(len(valid), device=valid.device)
        self.depth_used = torch.zeros(len(valid), dtype=torch.long, device=valid.device)

    @property
    def going(self) -> torch.Tensor:
        """Bool `[batch]`: the rows that have not halted."""
        if not self._threshold:
            return torch.ones_like(self.score, dtype=torch.bool)
        return self.score < self._threshold

    def take(self, step: int, active: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> None:
        """Notes a step.

        Args:
            step: from 0.
            active: bool `[batch]`, the rows that have had it.
            old: h before it, `[batch, seq, hidden]`.
            new: h after it.
        """
        reading = Reading(self._at_last(old), self._at_last(new), self._mean(new))
        score = self._halter(self.score, reading, step, self._read_out)
        self.score = torch.where(active, score, self.score)
        self.depth_used += active

    def _at_last(self, hidden: torch.Tensor) -> torch.Tensor:
        index = self._last.expand(-1, -1, hidden.shape[-1])
        return widen(hidden.gather(1, index)[:, 0])

    def _mean(self, hidden: torch.Tensor) -> torch.Tensor:
        h = widen(hidden)
        valid = self._valid[..., None].to(h.dtype)
        return (h * valid).sum(1) / valid.sum(1).clamp(min=1)


def drop_halter(model: OuroborosForCausalLM) -> None:
    """Takes a model's halter away, and what its config says of it.

    Args:
        model: one whose weights are about to change: a halter knows the model that it saw.
    """
    fields = type(model.config).__dataclass_fields__
    model.halter = None
    for name in ("halter", "halt_threshold", "halt_depth"):
        setattr(model.config, name, fields[name].default)


def begin_halting(
    model: OuroborosForCausalLM, threshold: float | None, past: int, sequences: Sequences
) -> Halting | None:
    """Returns what follows a call's rows, or None where no threshold is given.

    Args:
        model: that is called.
        threshold: of the halting score.
        past: slots that the cache holds.
        sequences: of the call.

    Raises:
        ConfigError: the model has no halter, the threshold is outside 0..1, or the call does not
            hold the whole prompt of every row as one document.
    """
    if threshold is None:
        return None
    threshold = check_threshold(threshold, model.config)
    if threshold and past:
        raise ConfigError(
            f"halt_threshold={threshold} beside {past} cached tokens: a depth is chosen on the "
            "whole prompt and stays fixed",
            "pass depth=depth_used and no threshold",
        )
    if model.halter is None:  # the config was changed after the model was made
        raise ConfigError("the model has no halter", "load it with a config that has one")
    return Halting(model.halter, threshold, sequences, model.read_out)
