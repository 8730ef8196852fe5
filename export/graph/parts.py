"""The straight-line parts of the graph, as modules that are traced one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from export.errors import ExportError
from export.graph.layers import Layer, Norm, Shared, cut_modulation, frozen, rms
from export.layout import head_turned
from export.precision import Precision, product
from ouroboros.errors import ConfigError
from ouroboros.model.base_config import require_fixed_rope
from ouroboros.model.bridge import Bridge
from ouroboros.model.configuration import STEP_NORM_EPS
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.model.modulation import ConstantModulation, Controller, StaticModulation

MASKED = float(torch.finfo(torch.float32).min)


class Opening(nn.Module):
    """Embedding, and everything that is computed once a call."""

    def __init__(self, model: OuroborosForCausalLM, precision: Precision) -> None:
        """Takes the embedding and the rotary frequencies.

        Raises:
            ExportError: the rotary embedding changes with the sequence's length.
        """
        super().__init__()
        rotary: Any = model.rotary_emb
        try:
            require_fixed_rope(rotary.rope_type)
        except ConfigError as error:
            raise ExportError(error.problem, error.cure) from error
        self.table = frozen(model.embed_tokens.weight, precision.compute)
        self.inv_freq = frozen(rotary.inv_freq)
        self.rope_scale = float(rotary.attention_scaling)
        config = model.config
        self.groups = config.num_attention_heads // config.num_key_value_heads

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logit_index: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Embeds `input_ids` `[B, S]`.

        Returns:
            h `[B, S, d]`; mask, cos and sin (see `Shared`); valid `[B, S, 1]` float; the pooled
            count `[B, S, 1]`; whether a row has a past `[B, 1, 1]` bool; `logit_index` `[B, K]`
            spread over the hidden size, int64 `[B, K, d]`.
        """
        new = input_ids.shape[1]
        total = attention_mask.shape[1]
        slots = torch.arange(total, device=input_ids.device)
        key_valid = (attention_mask != 0)[:, None, :]
        queries = slots[None, :new, None] + (total - new)
        allowed = key_valid & (slots[None, None, :] <= queries)
        mask = torch.where(allowed, 0.0, MASKED)[:, None]
        mask = mask.repeat(1, 1, self.groups, 1)
        angles = position_ids[..., None].to(torch.float32) * self.inv_freq
        cos, sin = torch.cos(angles) * self.rope_scale, torch.sin(angles) * self.rope_scale
        cos = torch.cat([cos, cos], dim=-1)[:, None]
        sin = torch.cat([-sin, sin], dim=-1)[:, None]
        running = torch.cumsum((attention_mask != 0).to(torch.float32), dim=1)[..., None]
        valid = (attention_mask[:, total - new :, None] != 0).to(torch.float32)
        count = running[:, total - new :].clamp(min=1.0)
        has_past = (running[:, total - new : total - new + 1] - valid[:, :1]) > 0.5
        h = functional.embedding(input_ids, self.table).float()
        picked = logit_index[..., None].expand(-1, -1, h.shape[-1])
        return h, mask, cos, sin, valid, count, has_past, picked


class Plain(nn.Module):
    """A kept decoder layer, traced once and copied for every layer of prelude and coda."""

    def __init__(self, layer: Any, precision: Precision) -> None:
        """Joins the weights of a Hugging Face decoder layer."""
        super().__init__()
        self.layer = Layer(layer, precision)

    def forward(
        self,
        h: torch.Tensor,
        shared: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        past: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns h `[B, S, d]` and the new keys and values `[B, kv, S, head_dim]`."""
        result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self.layer(
            h, Shared(*shared), past
        )
        return result


class Recurrence(nn.Module):
    """One recurrence of every row, without the choice of which rows have it."""

    def __init__(self, model: OuroborosForCausalLM, precision: Precision, max_depth: int) -> None:
        """Joins the weights of the looped layers; what a step owns is cut at `max_depth`."""
        super().__init__()
        source = model.recurrent
        self.pooling = model.config.pooling
        self.layers = nn.ModuleList(Layer(layer, precision, max_depth) for layer in source.layers)
        self.step_norm = frozen(source.norm.weight[:max_depth])
        self.unit = frozen(torch.ones(source.norm.weight.shape[1]))
        injection = source.injection
        self.injection = None if injection is None else frozen(injection.weight)
        self.gate_weight = self.gate_bias = None
        if source.gate is not None:
            self.gate_weight = frozen(source.gate.proj.weight.T.contiguous(), precision.compute)
            bias, steps = source.gate.proj.bias, source.gate.steps
            self.gate_bias = frozen(bias if steps is None else bias + steps.bias[:max_depth])
        match source.controller:
            case Controller() as controller:
                self.modulate: nn.Module | None = TracedController(controller, precision, max_depth)
            case StaticModulation() as static:
                self.modulate = TracedStatic(static.vectors[:max_depth])
            case ConstantModulation() as constant:
                self.modulate = TracedStatic(torch.ones(max_depth, constant.size))
            case _:
                self.modulate = None

    def advance(
        self,
        step: torch.Tensor,
        h: torch.Tensor,
        shared: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        pool: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        past: tuple[torch.Tensor, torch.Tensor],
        picked: torch.Tensor,
        entry: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs step `step` (int64 scalar) on h `[B, S, d]`.

        Args:
            step: number of the recurrence, from 0.
            h: the hidden state.
            shared: mask, cos, sin.
            pool: valid, count, has_past and the past pooled sums `[B, D, d]`.
            past: keys and values of all steps `[B, D * k, kv, P, head_dim]`, of k layers a step.
            picked: positions asked for, int64 `[B, K, d]`.
            entry: the state at the loop's entry `[B, S, d]`, for a model that injects it.

        Returns:
            h; new keys and values `[B, k * kv, S, head_dim]`, the heads of one layer after
            another's; pooled sums `[B, K, d]`.
        """
        index = step.reshape(1)
        pooled, sums = self._pool(h, pool, index)
        pool_out = sums.gather(1, picked)
        count = len(self.layers)
        cuts: list[list[torch.Tensor]] | None = None
        if self.modulate is not None:
            cuts = cut_modulation(self.modulate(pooled, index), count)
        new, keys, values = h, [], []
        if self.injection is not None:
            new = h + self.injection * entry
        for place, layer in enumerate(self.layers):
            slot = index if count == 1 else index * count + place
            kv = tuple(torch.index_select(p, 1, slot).squeeze(1) for p in past)
            own = (None,) * 4 if cuts is None else cuts[place]
            new, k, v = layer(new, Shared(*shared), kv, own, step)
            keys.append(k)
            values.append(v)
        # Times one, then the step's weight: backends fuse a norm whose weight is a constant.
        new = rms(new, STEP_NORM_EPS) * self.unit * torch.index_select(self.step_norm, 0, index)
        if self.gate_weight is not None and self.gate_bias is not None:
            joined = torch.cat([new, h], dim=-1)
            bias: torch.Tensor = self.gate_bias
            if bias.ndim == 2:  # of every step
                bias = torch.index_select(bias, 0, index)
            gate = torch.sigmoid(product(joined, self.gate_weight) + bias)
            new = h + gate * (new - h)
        return new, _join_heads(keys), _join_heads(values), pool_out

    def _pool(
        self, h: torch.Tensor, pool: tuple[torch.Tensor, ...], index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        valid, count, has_past, past_sums = pool
        past = torch.index_select(past_sums, 1, index)
        match self.pooling:
            case "causal":
                sums = torch.cumsum(h * valid, dim=1) + past
                return sums / count, sums
            case "mean":
                total = (h * valid).sum(1, keepdim=True)
                own = total / valid.sum(1, keepdim=True).clamp(min=1.0)
                mean = torch.where(has_past, past, own)
                return mean, mean.expand(-1, h.shape[1], -1)
            case _:
                return h, h


class Step(Recurrence):
    """What becomes the body of the Loop."""

    def forward(
        self,
        step: torch.Tensor,
        h: torch.Tensor,
        shared: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        pool: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        past: tuple[torch.Tensor, torch.Tensor],
        picked: torch.Tensor,
        row_depth: torch.Tensor,
        entry: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs a step on the rows that have it; arguments and result as `advance` has them.

        Beside those `row_depth`, int64 `[B]`: a row that has had its steps passes through
        unchanged.
        """
        new, keys, values, sums = self.advance(step, h, shared, pool, past, picked, entry)
        return torch.where((step < row_depth)[:, None, None], new, h), keys, values, sums


def _join_heads(parts: list[torch.Tensor]) -> torch.Tensor:
    """Puts the heads of the looped layers `[B, kv, S, head_dim]` behind each other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class TracedController(nn.Module):
    """The Controller with `[in, out]` weights and the step as a tensor.

    The step embedding's share of the first mixing layer depends on nothing but the step, so it
    is a table of biases: mix_1([s; E_i]) = s W_s + (E_i W_e + b).
    """

    def __init__(self, controller: Controller, precision: Precision, max_depth: int) -> None:
        """Copies the weights, step tables up to `max_depth`."""
        super().__init__()
        dtype = precision.compute
        mix, embedding = controller.mix_1, controller.step_embedding.weight[:max_depth]
        cut = mix.in_features - embedding.shape[1]
        table = functional.linear(embedding, mix.weight[:, cut:], mix.bias)
        self.step_bias = frozen(table)
        self.style_weight = frozen(controller.style.weight.T.contiguous(), dtype)
        self.style_bias = frozen(controller.style.bias)
        self.mix_1 = frozen(mix.weight[:, :cut].T.contiguous(), dtype)
        self.mix_2 = frozen(controller.mix_2.weight.T.contiguous(), dtype)
        self.mix_2_bias = frozen(controller.mix_2.bias)
        self.heads = frozen(controller.heads.weight.T.contiguous(), dtype)

    def forward(self, pooled: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Maps pooled h `[B, S or 1, d]` to modulation `[B, S or 1, k * 7 * rank]`."""
        z = functional.silu(product(pooled, self.style_weight) + self.style_bias)
        z = functional.silu(product(z, self.mix_1) + torch.index_select(self.step_bias, 0, index))
        return product(functional.silu(product(z, self.mix_2) + self.mix_2_bias), self.heads)


class TracedStatic(nn.Module):
    """The static ablations: one vector a step."""

    def __init__(self, vectors: torch.Tensor) -> None:
        """Copies the vectors, `[max_depth, k * 7 * rank]`."""
        super().__init__()
        self.vectors = frozen(vectors)

    def forward(self, pooled: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Returns `[1, 1, k * 7 * rank]`."""
        return torch.index_select(self.vectors, 0, index)[None]


class TracedBridge(nn.Module):
    """The linear map beside the loop: h + h T + t.

    h itself passes by the product in float32: only what the map adds is rounded.
    """

    def __init__(self, bridge: Bridge, precision: Precision) -> None:
        """Copies T and t."""
        super().__init__()
        self.weight = frozen(bridge.weight.T.contiguous(), precision.compute)
        self.bias = frozen(bridge.bias)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Maps h `[B, S, d]` to the same shape."""
        return h + (product(h, self.weight) + self.bias)


class Closing(nn.Module):
    """Final norm and LM head, at the positions asked for."""

    def __init__(self, model: OuroborosForCausalLM, precision: Precision) -> None:
        """Takes the final norm; the head is an input, so that a tied one is shared."""
        super().__init__()
        self.norm = Norm(model.norm)
        self.turned = head_turned(precision)

    def forward(self, h: torch.Tensor, picked: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits `[B, K, V]`.

        The LM head is laid out as an embedding `[V, d]`; one to be quantised, which shares nothing
        with the embedding's node, as `[d, V]`.
        """
        h = h.gather(1, picked)
        return product(self.norm(h), head if self.turned else head.t())
