"""What the Controller reads at each position, and the masks that keep documents apart.

Everything here runs in float32 whatever the weights' type; in float64 where the model does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ouroboros.model.cache import OuroborosCache


@dataclass(frozen=True)
class Sequences:
    """Who may see whom in one call: B rows, P past slots, S new tokens.

    Attributes:
        allowed: bool `[B, S, P+S]`: the query may attend to the key.
        valid: bool `[B, S]`: the new position is no padding.
        past_count: float32 `[B, 1]`: valid positions already in the cache.
        documents: int64 `[B, S]` document number of each position, or None for one document a row.
    """

    allowed: torch.Tensor
    valid: torch.Tensor
    past_count: torch.Tensor
    documents: torch.Tensor | None

    def additive_mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns the attention mask `[B, 1, S, P+S]`: 0 or the lowest finite number.

        A finite minimum, since -inf makes NaN of rows in which everything is masked.
        """
        mask = torch.zeros(self.allowed.shape, dtype=dtype, device=self.allowed.device)
        return mask.masked_fill(~self.allowed, torch.finfo(dtype).min)[:, None]


def widen(x: torch.Tensor) -> torch.Tensor:
    """Returns `x` in float32, or in float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def describe_sequences(
    batch: int,
    new: int,
    past: int,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    device: torch.device,
) -> Sequences:
    """Reads padding from `attention_mask` `[B, P+S]` and documents from `position_ids` `[B, S]`.

    Positions that restart at 0 in a call without a past mark packed documents.
    """
    if attention_mask is None:
        attention_mask = torch.ones(batch, past + new, dtype=torch.bool, device=device)
    mask = attention_mask.to(device=device, dtype=torch.bool)
    slots = torch.arange(past + new, device=device)
    causal = slots[None, :] <= slots[past:, None]
    allowed = causal[None] & mask[:, None, :]
    documents = None
    if position_ids is not None and past == 0 and new > 1:
        # Padding may carry position 0 too: only a restart at a valid position is a document.
        numbers = ((position_ids == 0) & mask).long().cumsum(-1)
        if bool((numbers > 1).any()):
            documents = numbers
            allowed = allowed & (documents[:, :, None] == documents[:, None, :])
    past_count = mask[:, :past].sum(-1, keepdim=True).float()
    return Sequences(allowed, mask[:, past:], past_count, documents)


def pool_causal(
    hidden: torch.Tensor, sequences: Sequences, cache: OuroborosCache | None, step: int
) -> torch.Tensor:
    """Averages h over the valid prefix of each position: `[B, S, d]`, exact with a cache."""
    h = widen(hidden)
    if sequences.documents is not None:
        weights = sequences.allowed.to(h.dtype)
        pooled: torch.Tensor = weights @ h / weights.sum(-1, keepdim=True).clamp(min=1)
        return pooled
    valid = sequences.valid.to(h.dtype)
    sums = (h * valid[..., None]).cumsum(1)
    if cache is not None:
        if step in cache.pool:
            sums = sums + cache.pool[step]
        cache.pool[step] = sums[:, -1:]
    count = valid.cumsum(1) + sequences.past_count
    return sums / count.clamp(min=1)[..., None]


def pool_mean(
    hidden: torch.Tensor, sequences: Sequences, cache: OuroborosCache | None, step: int
) -> torch.Tensor:
    """Averages h over the whole sequence, as the paper does; frozen on the prompt in a cache.

    Every position sees later tokens: kept to reproduce the paper, not to generate well.
    Returns `[B, 1, d]`, or `[B, S, d]` where documents are packed.
    """
    if cache is not None and step in cache.pool:
        return cache.pool[step]
    h = widen(hidden)
    valid = sequences.valid.to(h.dtype)
    if sequences.documents is not None:
        same = sequences.documents[:, :, None] == sequences.documents[:, None, :]
        weights = same.to(h.dtype) * valid[:, None, :]
        documents: torch.Tensor = weights @ h / weights.sum(-1, keepdim=True).clamp(min=1)
        return documents
    total = (h * valid[..., None]).sum(1, keepdim=True)
    pooled: torch.Tensor = total / valid.sum(1).clamp(min=1)[:, None, None]
    if cache is not None:
        cache.pool[step] = pooled
    return pooled


def pool_token(
    hidden: torch.Tensor, sequences: Sequences, cache: OuroborosCache | None, step: int
) -> torch.Tensor:
    """Returns h itself in float32: the Controller reads each token alone."""
    return widen(hidden)


POOLING = {"causal": pool_causal, "mean": pool_mean, "token": pool_token}
