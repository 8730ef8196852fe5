"""The key/value cache of a looped model: one slot list a kept layer, and in a step one a layer.

`row_depth` and depth stay fixed while a sequence is decoded, so a step's list never has holes.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from ouroboros.errors import ConfigError

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls a cache, as an argument and in outputs: since 5.24 `cache`."""


class OuroborosCache(Cache):
    """Keys and values of prelude (0..), coda (then) and steps (last), and the pooled state.

    Of the steps entry i * k + j is that of step i and of layer j of the k that are looped.

    Attributes:
        pool: one entry a step, float32 `[batch, 1, hidden]`: the running sum of h before the
            step (`causal` pooling) or its mean frozen on the prompt (`mean`).
    """

    def __init__(self, num_layers: int) -> None:
        """Makes an empty cache for a model that keeps `num_layers` layers around the loop."""
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.num_layers = num_layers
        self.pool: dict[int, torch.Tensor] = {}

    def at_entry(self, entry: int) -> StepCache:
        """Returns the view through which a looped layer sees its slots of a step."""
        return StepCache(self, self.num_layers + entry)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns how many slots are filled (padding included)."""
        return int(self.layers[layer_idx].get_seq_length()) if len(self.layers) > layer_idx else 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorders rows for beam search, the pooled state with the keys and values."""
        super().reorder_cache(beam_idx)
        self.pool = {step: pool.index_select(0, beam_idx) for step, pool in self.pool.items()}

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self.pool = {s: pool.repeat_interleave(repeats, dim=0) for s, pool in self.pool.items()}

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices`."""
        super().batch_select_indices(indices)
        self.pool = {step: pool[indices] for step, pool in self.pool.items()}

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: the pooled sum of an earlier position is not kept.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "an Ouroboros cache can't be cropped: its pooled sums stand at the last position only",
            "make a new one, and give it the tokens that stay",
        )


class StepCache:
    """What a Hugging Face decoder layer needs of a cache, pinned to its slots of one step."""

    def __init__(self, cache: OuroborosCache, layer_idx: int) -> None:
        """Binds the slots `layer_idx` of `cache`."""
        self.cache = cache
        self.layer_idx = layer_idx

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends new keys and values `[batch, kv_heads, seq, head_dim]`; returns all of them."""
        new: tuple[torch.Tensor, torch.Tensor] = self.cache.update(keys, values, self.layer_idx)
        return new
