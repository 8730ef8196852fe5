"""The cache's memory: numpy buffers that grow by buckets and are bound to the graph as they are.

All rows of a batch advance together, so that one slot number serves every row; a mask says which
slots hold a row's tokens. New keys and values come out of the graph in buffers of their own and
are copied into their slots; nothing else of the cache is ever copied, except when it grows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.manifest import Manifest
from runtime.ort import cache_names

BUCKET = 64

Array = NDArray[Any]


def capacity_for(slots: int, most: int) -> int:
    """The bucket that holds `slots`: multiples of 64, in steps of about an eighth when long.

    Args:
        slots: slots needed, 0 or more.
        most: the model's positions; the bucket never passes them, rounded up to a multiple of 64.
    """
    if slots == 0:
        return 0
    capacity = BUCKET
    while capacity < slots:
        capacity += max(BUCKET, capacity // 8 // BUCKET * BUCKET)
    return min(capacity, -(-max(most, slots) // BUCKET) * BUCKET)


@dataclasses.dataclass(frozen=True)
class NewKeys:
    """Buffers that receive the keys and values of `tokens` new positions.

    Both are of the graph's type, float32 or float16.

    layers: [2 * layers, batch, kv, tokens, hd], key and value of layer 0, of layer 1, ...
    recurrent: [2, batch, depth, kv, tokens, hd].
    """

    layers: Array
    recurrent: Array

    def named(self, manifest: Manifest) -> dict[str, Array]:
        """The buffers under the names of the graph's outputs."""
        arrays = [*self.layers, *self.recurrent]
        names = cache_names(manifest)
        return {f"new_key_values.{n}": a for n, a in zip(names, arrays, strict=True)}


class KVCache:
    """Keys, values and pooled sums of one batch.

    Attributes:
        length: slots in use, the same for every row.
        capacity: slots there are.
        valid: int64 [batch, capacity + 1], 1 where a slot holds a token of its row; the last
            column stands for the one new token of a decoding step and is always 1.
        pool_sum: float32 [batch, depth, d].
    """

    def __init__(self, manifest: Manifest, batch: int, depth: int) -> None:
        self._manifest = manifest
        self._dtype = np.dtype(manifest.cache_dtype)
        self.batch = batch
        self.depth = depth
        self.length = 0
        self.capacity = 0
        self.pool_sum = np.zeros((batch, depth, manifest.model.hidden_size), np.float32)
        self._allocate(0)

    @property
    def cache_bytes(self) -> int:
        """Bytes held for keys and values."""
        return int(self._layers.nbytes + self._recurrent.nbytes)

    def reserve(self, slots: int) -> bool:
        """Grows to the bucket which holds `slots` slots; true if the buffers are new ones."""
        if slots <= self.capacity:
            return False
        layers, recurrent, valid = self._layers, self._recurrent, self.valid
        self._allocate(capacity_for(slots, self._manifest.model.max_position_embeddings))
        used = slice(0, self.length)
        self._layers[..., used, :] = layers[..., used, :]
        self._recurrent[..., used, :] = recurrent[..., used, :]
        self.valid[:, used] = valid[:, used]
        return True

    def named(self) -> dict[str, Array]:
        """The buffers under the names of the graph's inputs."""
        arrays = [*self._layers, *self._recurrent]
        names = cache_names(self._manifest)
        past = {f"past_key_values.{n}": a for n, a in zip(names, arrays, strict=True)}
        return {"past_pool_sum": self.pool_sum, **past}

    def new_keys(self, tokens: int) -> NewKeys:
        """Buffers for the keys and values of `tokens` new positions."""
        return NewKeys(
            np.zeros(self._shape(tokens, self._layers.shape[:1]), self._dtype),
            np.zeros(self._shape(tokens, (2,), self.depth), self._dtype),
        )

    def append(self, new: NewKeys, valid: Array | int) -> None:
        """Copies new keys and values into the next slots.

        Args:
            new: buffers which the graph has filled.
            valid: int64 [batch, tokens] or one number for all, 1 where a position holds a token.
        """
        end = self.length + new.layers.shape[-2]
        used = slice(self.length, end)
        self._layers[..., used, :] = new.layers
        self._recurrent[..., used, :] = new.recurrent
        self.valid[:, used] = valid
        self.length = end

    def mask_with(self, valid: Array) -> Array:
        """The graph's attention_mask for new positions: int64 [batch, capacity + tokens]."""
        return np.concatenate([self.valid[:, : self.capacity], valid], axis=1)

    def _shape(self, slots: int, first: tuple[int, ...], *inner: int) -> tuple[int, ...]:
        model = self._manifest.model
        return (*first, self.batch, *inner, model.num_key_value_heads, slots, model.head_dim)

    def _allocate(self, capacity: int) -> None:
        layers = 2 * self._manifest.model.num_layers
        self.capacity = capacity
        self._layers = np.zeros(self._shape(capacity, (layers,)), self._dtype)
        self._recurrent = np.zeros(self._shape(capacity, (2,), self.depth), self._dtype)
        self.valid = np.zeros((self.batch, capacity + 1), np.int64)
        self.valid[:, capacity] = 1
