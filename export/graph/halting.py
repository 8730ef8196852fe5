"""What a model with a halter adds to the graph: what is read once a call, and in every step.

All of it in float32. A score is carried through the Loop beside h, and how many steps each row has
had; a row that has halted passes through unchanged, as one whose `row_depth` is reached.
"""

from __future__ import annotations

import torch
from torch import nn

from export.errors import ExportError
from export.graph.layers import Norm, frozen, rms
from export.graph.parts import Recurrence
from export.precision import Precision, product
from ouroboros.model.configuration import STEP_NORM_EPS
from ouroboros.model.modeling import OuroborosForCausalLM

NEVER = float(torch.finfo(torch.float32).max)
"""A score that none reaches: finite, as everything in the graph."""


def require_halter(halter: str, precision: Precision, trt: bool) -> None:
    """Refuses a halter that can't be exported as it is asked for.

    Args:
        halter: of the model's config.
        precision: of the graph.
        trt: a TensorRT plan is built of it.

    Raises:
        ExportError: it reads the LM head in every step, which is not built there.
    """
    if halter == "confidence" and (precision.quantized or trt):
        what = "a TensorRT plan" if trt else precision.name
        raise ExportError(
            f"{what} with the halter `confidence`, which reads the LM head in every step, is not "
            "built",
            "give the checkpoint another with `ouro halter --kind trained` or `--kind distance`, "
            "or export it in fp32, fp16 or bf16",
        )


class HaltOpening(nn.Module):
    """What halting needs once a call."""

    def __init__(self, model: OuroborosForCausalLM) -> None:
        """Takes the hidden size."""
        super().__init__()
        self.width = model.config.hidden_size
        self.asks = model.config.halter == "confidence"

    def forward(
        self, valid: torch.Tensor, row_depth: torch.Tensor, threshold: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Finds where prompts end.

        Args:
            valid: float `[B, S, 1]`.
            row_depth: int64 `[B]`.
            threshold: float32 `[1]`, 0 halts nothing.

        Returns:
            The score and the steps of each row before the first, float32 and int64 `[B]`; the last
            valid position spread over the hidden size, int64 `[B, 1, d]`; each position's share in
            the mean, float32 `[B, 1, S]`; the least score that halts, float32 `[1]`; and, where the
            halter reads the LM head, int64 `[n]`: a 0, or nothing where nothing can halt, so that
            the head is then read for no row.
        """
        used = row_depth * 0
        flat = valid.squeeze(-1)
        slots = torch.arange(valid.shape[1], device=valid.device)
        last = (slots * flat).argmax(1, keepdim=True)
        share = (flat / flat.sum(1, keepdim=True).clamp(min=1.0))[:, None]
        least = torch.where(threshold > 0, threshold, NEVER)
        found = (used.float(), used, last[..., None].expand(-1, -1, self.width), share, least)
        return (*found, torch.nonzero(threshold > 0).reshape(-1)) if self.asks else found


class HaltingStep(Recurrence):
    """A step, the halting score after it, and which rows have it: the body of the Loop."""

    def __init__(self, model: OuroborosForCausalLM, precision: Precision, max_depth: int) -> None:
        """Takes the step's weights and the halter's."""
        super().__init__(model, precision, max_depth)
        self.kind = model.config.halter
        if self.kind == "trained" and model.halter is not None:
            width = model.config.hidden_size
            self.halt_weight = frozen(model.halter.weight.reshape(2, width))
            self.halt_bias = frozen(model.halter.bias[:max_depth])
            self.halt_unit = frozen(torch.ones(width))
        if self.kind == "confidence":
            self.final_norm = Norm(model.norm)

    def forward(
        self,
        step: torch.Tensor,
        h: torch.Tensor,
        halted: tuple[torch.Tensor, torch.Tensor],
        shared: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        pool: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        past: tuple[torch.Tensor, torch.Tensor],
        picked: torch.Tensor,
        row_depth: torch.Tensor,
        entry: torch.Tensor,
        ends: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, ...]:
        """Runs a step on the rows that have it.

        Args:
            step: as `advance` has it, and so `h`, `shared`, `pool`, `past` and `picked`.
            h: see there.
            halted: the score `[B]` and how many steps each row has had, int64 `[B]`.
            shared: see there.
            pool: see there.
            past: see there.
            picked: see there.
            row_depth: int64 `[B]`, the most steps of a row.
            entry: as `advance` has it.
            ends: the last results of `HaltOpening`, and the LM head `[V, d]` where it is read.

        Returns:
            h, score and steps after it; then what `advance` returns beside h.
        """
        score, used = halted
        last, share, least, *asked = ends
        new, keys, values, sums = self.advance(step, h, shared, pool, past, picked, entry)
        active = (step < row_depth) & (score < least)
        score = torch.where(active, self._score(step, score, h, new, last, share, asked), score)
        used = used + active.long()
        return torch.where(active[:, None, None], new, h), score, used, keys, values, sums

    def _score(
        self,
        step: torch.Tensor,
        score: torch.Tensor,
        old: torch.Tensor,
        new: torch.Tensor,
        last: torch.Tensor,
        share: torch.Tensor,
        asked: list[torch.Tensor],
    ) -> torch.Tensor:
        """The score `[B]` after the step; see `ouroboros.model.halting`."""
        end = new.gather(1, last)
        match self.kind:
            case "trained":
                seen = rms(torch.cat([end, share @ new], dim=1), STEP_NORM_EPS) * self.halt_unit
                logit = (seen * self.halt_weight).sum((1, 2))
                logit = logit + torch.index_select(self.halt_bias, 0, step.reshape(1))
                return score + (1.0 - score) * torch.sigmoid(logit)
            case "confidence":
                rows, head = asked
                logits = product(self.final_norm(torch.index_select(end, 1, rows)), head.t())
                # Of no row the sum is 0.
                sure: torch.Tensor = torch.softmax(logits, dim=-1).amax(-1).sum(1)
                return sure
            case _:
                moved = (end - old.gather(1, last)).norm(dim=-1)
                size = end.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
                still: torch.Tensor = (1.0 - moved / size).squeeze(1)
                return still
