"""A decoder layer in the form that runs fast as a graph, built from a Hugging Face layer.

Fewer nodes is what makes a decoded token cheap: q, k and v (and gate and up) are one MatMul, the
low-rank A matrices ride in the same one, rotary embedding is applied to queries and keys at once,
the attention scale is folded into the query weights, and query heads are grouped by their key
head so that keys are never repeated. Weights are `[in, out]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from export.layout import GROUPS, attention_scale
from export.precision import Precision, narrow, product
from ouroboros.model.configuration import PROJECTIONS
from ouroboros.model.modulation import ModulatedLinear


@dataclass(frozen=True)
class Shared:
    """What every layer of one call reads: computed once, before the first layer.

    Attributes:
        mask: additive attention mask `[B, 1, groups * S, P + S]`.
        cos: rotary cosines `[B, 1, S, head_dim]`.
        sin: rotary sines, the first half negated, `[B, 1, S, head_dim]`.
    """

    mask: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


class Norm(nn.Module):
    """RMSNorm in float32 in the node pattern that backends fuse."""

    def __init__(self, norm: Any) -> None:
        """Takes the weight and epsilon of a Hugging Face RMSNorm."""
        super().__init__()
        self.weight = frozen(norm.weight)
        self.eps = float(norm.variance_epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises the last axis."""
        return rms(x, self.eps) * self.weight


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Scales the last axis to RMS 1."""
    return x / torch.sqrt(x.pow(2.0).mean(-1, keepdim=True) + eps)


def frozen(value: torch.Tensor, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """Returns `value` as a parameter of `dtype` that wants no gradient."""
    return nn.Parameter(value.detach().to(dtype), requires_grad=False)


def attend(
    q: torch.Tensor,
    keys: tuple[torch.Tensor, torch.Tensor],
    values: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor,
) -> torch.Tensor:
    """Two-part attention: scores over past and new keys are joined, the keys are not.

    Args:
        q: scaled queries `[B, kv, groups * S, head_dim]`, of the keys' type.
        keys: past `[B, kv, P, head_dim]` and new `[B, kv, S, head_dim]`.
        values: the same for the values.
        mask: additive `[B, 1, groups * S, P + S]`, float32.

    Returns:
        float32 `[B, kv, groups * S, head_dim]`.
    """
    scores = torch.cat([product(q, key.transpose(2, 3)) for key in keys], dim=-1) + mask
    weights = functional.softmax(scores, dim=-1)
    past = keys[0].shape[2]
    return product(weights[..., :past], values[0]) + product(weights[..., past:], values[1])


class LowRank(nn.Module):
    """The modulated update of a group of projections: x A diag(m) B, one base or one a step."""

    def __init__(
        self,
        projections: list[ModulatedLinear],
        scales: list[float],
        dtype: torch.dtype,
        steps: int | None = None,
    ) -> None:
        """Lays the bases side by side; B becomes block-diagonal, with alpha / r folded in.

        Of `steps` steps at most so many bases are read; None: all are kept.
        """
        super().__init__()
        self.bases = len(projections[0].lora_a[:steps])
        self.rank = sum(p.lora_a.shape[1] for p in projections)
        a = torch.cat([p.lora_a[:steps].transpose(1, 2) for p in projections], dim=-1)
        blocks = [
            torch.block_diag(
                *(
                    p.lora_b[base].T * (p.scaling * scale)
                    for p, scale in zip(projections, scales, strict=True)
                )
            )
            for base in range(self.bases)
        ]
        b = torch.stack(blocks)
        # A single base is a plain matrix.
        self.a = frozen(a if self.bases > 1 else a[0], dtype)
        self.b = frozen(b if self.bases > 1 else b[0], dtype)

    def select(self, matrix: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Returns the base of `step` (int64 scalar) of `[bases, in, out]`."""
        if self.bases == 1:
            return matrix
        index = torch.clamp(step, max=self.bases - 1).reshape(1)
        return torch.index_select(matrix, 0, index)[0]


class Projection(nn.Module):
    """Several projections of one input as one MatMul, with their low-rank updates if modulated."""

    def __init__(
        self,
        linears: list[Any],
        precision: Precision,
        scales: list[float] | None = None,
        steps: int | None = None,
    ) -> None:
        """Joins `linears`; `scales` multiply their outputs (the folded attention scale).

        Low-rank bases are kept for `steps` steps; None: all.

        A single low-rank A rides in the same MatMul, unless the weights are to be quantised: the
        bases stay floats.
        """
        super().__init__()
        scales = scales or [1.0] * len(linears)
        weights = [
            lin.weight.T if scale == 1.0 else lin.weight.T * scale
            for lin, scale in zip(linears, scales, strict=True)
        ]
        self.width = sum(lin.out_features for lin in linears)
        modulated = [lin for lin in linears if isinstance(lin, ModulatedLinear)]
        self.low_rank: LowRank | None = None
        if modulated:
            self.low_rank = LowRank(modulated, scales, precision.compute, steps)
        self.joined = False
        if self.low_rank is not None and self.low_rank.bases == 1 and not precision.quantized:
            self.joined = True
            weights.append(self.low_rank.a.float())
            del self.low_rank.a
        self.weight = frozen(torch.cat(weights, dim=-1).contiguous(), precision.compute)
        self.bias = None
        if any(lin.bias is not None for lin in linears):
            parts = [
                torch.zeros(lin.out_features) if lin.bias is None else lin.bias * scale
                for lin, scale in zip(linears, scales, strict=True)
            ]
            self.bias = frozen(torch.cat(parts))

    def forward(
        self, x: torch.Tensor, modulation: torch.Tensor | None, step: torch.Tensor | None
    ) -> torch.Tensor:
        """Maps `[B, S, in]` to `[B, S, width]`, with `modulation` `[B, S or 1, ranks]`."""
        y = product(x, self.weight)
        if self.low_rank is not None and modulation is not None and step is not None:
            if self.joined:
                y, low = y.split([self.width, self.low_rank.rank], dim=-1)
            else:
                low = product(x, self.low_rank.select(self.low_rank.a, step))
            y = y + product(low * modulation, self.low_rank.select(self.low_rank.b, step))
        return y if self.bias is None else y + self.bias


def cut_modulation(modulation: torch.Tensor, layers: int) -> list[list[torch.Tensor]]:
    """Cuts a step's modulation `[B, S or 1, layers * 7 * rank]` for every layer's four groups."""
    rank = modulation.shape[-1] // (layers * len(PROJECTIONS))
    groups = [len(parts) * rank for parts in GROUPS.values()]
    cuts = modulation.split(groups * layers, dim=-1)
    firsts = range(0, len(cuts), len(groups))
    return [list(cuts[first : first + len(groups)]) for first in firsts]


class Layer(nn.Module):
    """A whole decoder layer: four groups of projections, each one MatMul."""

    def __init__(self, layer: Any, precision: Precision, steps: int | None = None) -> None:
        """Copies and joins the weights of a Hugging Face decoder layer, bases for `steps` steps."""
        super().__init__()
        self.compute = precision.compute
        attention, mlp = layer.self_attn, layer.mlp
        config = attention.config
        self.head_dim = attention.head_dim
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.norm_1 = Norm(layer.input_layernorm)
        self.norm_2 = Norm(layer.post_attention_layernorm)
        scale = attention_scale(layer)
        self.qk_norm, self.qk_eps = None, 0.0
        if hasattr(attention, "q_norm"):
            rows = [attention.q_norm.weight * float(attention.scaling)] * self.heads
            rows += [attention.k_norm.weight] * self.kv_heads
            self.qk_norm = frozen(torch.stack(rows)[:, None])
            self.qk_eps = float(attention.q_norm.variance_epsilon)
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = Projection(qkv, precision, [scale, 1.0, 1.0], steps)
        self.out = Projection([attention.o_proj], precision, steps=steps)
        self.gate_up = Projection([mlp.gate_proj, mlp.up_proj], precision, steps=steps)
        self.down = Projection([mlp.down_proj], precision, steps=steps)
        self.width = mlp.gate_proj.out_features
        self.activation = mlp.act_fn

    def forward(
        self,
        x: torch.Tensor,
        shared: Shared,
        past: tuple[torch.Tensor, torch.Tensor],
        cuts: Sequence[torch.Tensor | None] = (None,) * len(GROUPS),
        step: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs the layer on `[B, S, d]` over past keys and values `[B, kv, P, head_dim]`.

        Args:
            x: the hidden state.
            shared: mask, cosines and sines.
            past: keys and values.
            cuts: the modulation of each group of projections, of `cut_modulation`.
            step: number of the recurrence, int64 scalar; None outside the loop.

        Returns:
            the output `[B, S, d]` and the new keys and values `[B, kv, S, head_dim]`, the latter
            of the precision's type.
        """
        batch, new = x.shape[0], x.shape[1]
        heads = self.qkv(self.norm_1(x), cuts[0], step)
        heads = heads.reshape(batch, new, self.heads + 2 * self.kv_heads, self.head_dim)
        # One transposition for q, k and v together; grouping the query heads is then free.
        qk, v = heads.transpose(1, 2).split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if self.qk_norm is not None:
            qk = rms(qk, self.qk_eps) * self.qk_norm
        first, second = qk.split([self.head_dim // 2, self.head_dim // 2], dim=-1)
        qk = qk * shared.cos + torch.cat([second, first], dim=-1) * shared.sin
        q, k = narrow(qk, self.compute).split([self.heads, self.kv_heads], dim=1)
        v = narrow(v, self.compute)
        q = q.reshape(batch, self.kv_heads, -1, self.head_dim)
        mixed = attend(q, (past[0], k), (past[1], v), shared.mask)
        mixed = mixed.reshape(batch, self.heads, new, self.head_dim).transpose(1, 2)
        mixed = mixed.reshape(batch, new, self.heads * self.head_dim)
        x = x + self.out(mixed, cuts[1], step)
        gate, up = self.gate_up(self.norm_2(x), cuts[2], step).split(self.width, dim=-1)
        x = x + self.down(self.activation(gate) * up, cuts[3], step)
        return x, k, v
