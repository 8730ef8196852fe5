"""The cache: buffers that grow by buckets and are bound to the graph as they are.

All rows of a batch advance together, so that one slot number serves every row; a mask says which
slots hold a row's tokens. New keys and values come out of the graph in buffers of their own and
are copied into their slots; nothing else of the cache is ever copied, except when it grows. The
memory, on the host or on a GPU, is the backend's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.memory import Buffer, Memory
from runtime.bundle.contract import BUCKET, NEW_PREFIX, PAST_POOL_SUM, PAST_PREFIX, cache_ends
from runtime.bundle.manifest import Manifest

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

    Both are of the graph's type, float32, float16 or bfloat16.

    layers: [2 * layers, batch, kv, tokens, hd], key and value of layer 0, of layer 1, ...
    recurrent: [2, batch, depth, kv, tokens, hd].
    """

    layers: Buffer
    recurrent: Buffer

    def named(self, manifest: Manifest) -> dict[str, Buffer]:
        """The buffers under the names of the graph's outputs."""
        return _name_parts(manifest, self, NEW_PREFIX)


class KVCache:
    """Keys, values and pooled sums of one batch.

    Attributes:
        length: slots in use, the same for every row.
        capacity: slots there are.
        valid: int64 [batch, capacity + 1], 1 where a slot holds a token of its row; the last
            column stands for the one new token of a decoding step and is always 1.
        pool_sum: float32 [batch, depth, d].
    """

    def __init__(
        self, manifest: Manifest, memory: Memory, batch: int, depth: int, max_slots: int
    ) -> None:
        self._manifest = manifest
        self._memory = memory
        self._dtype = manifest.cache_dtype
        self._max_slots = max_slots
        self.batch = batch
        self.depth = depth
        self.length = 0
        self.capacity = 0
        width = manifest.model.hidden_size
        self.pool_sum = memory.zeros((batch, depth, width), "float32")
        self._pool_slot = self.pool_sum.reshape((batch, depth, 1, width))
        self._allocate(0)

    @property
    def cache_bytes(self) -> int:
        """Bytes held for keys and values."""
        return self._keys.layers.nbytes + self._keys.recurrent.nbytes

    def reserve(self, slots: int) -> bool:
        """Grows to the bucket which holds `slots` slots; true if the buffers are new ones."""
        if slots <= self.capacity:
            return False
        keys, valid = self._keys, self.valid
        self._allocate(capacity_for(slots, self._max_slots))
        self._memory.copy(self._keys.layers, 0, keys.layers, 0, self.length)
        self._memory.copy(self._keys.recurrent, 0, keys.recurrent, 0, self.length)
        self.valid[:, : self.length] = valid[:, : self.length]
        return True

    def named(self) -> dict[str, Buffer]:
        """The buffers under the names of the graph's inputs."""
        past = _name_parts(self._manifest, self._keys, PAST_PREFIX)
        return {PAST_POOL_SUM: self.pool_sum, **past}

    def new_keys(self, tokens: int) -> NewKeys:
        """Buffers for the keys and values of `tokens` new positions."""
        model, stack = self._manifest.model, self._memory.stack
        inner = (model.num_key_value_heads, tokens, model.head_dim)
        return NewKeys(
            stack(2 * model.num_layers, (self.batch, *inner), self._dtype),
            stack(2, (self.batch, self.depth, *inner), self._dtype),
        )

    def append(self, new: NewKeys, pool: Buffer, valid: Array | int) -> None:
        """Copies new keys and values into the next slots, and keeps the last of the new sums.

        Args:
            new: buffers which the graph has filled.
            pool: float32 [batch, depth, K, d], likewise.
            valid: int64 [batch, tokens] or one number for all, 1 where a position holds a token.
        """
        memory, count = self._memory, new.layers.shape[-2]
        memory.copy(self._keys.layers, self.length, new.layers, 0, count)
        memory.copy(self._keys.recurrent, self.length, new.recurrent, 0, count)
        memory.copy(self._pool_slot, 0, pool, pool.shape[-2] - 1, 1)
        self.valid[:, self.length : self.length + count] = valid
        self.length += count

    def mask_with(self, valid: Array) -> Array:
        """The graph's attention_mask for new positions: int64 [batch, capacity + tokens]."""
        return np.concatenate([self.valid[:, : self.capacity], valid], axis=1)

    def _allocate(self, capacity: int) -> None:
        self.capacity = capacity
        self._keys = self.new_keys(capacity)
        self.valid = np.zeros((self.batch, capacity + 1), np.int64)
        self.valid[:, capacity] = 1


def _name_parts(manifest: Manifest, keys: NewKeys, prefix: str) -> dict[str, Buffer]:
    names = [f"{prefix}{end}" for end in cache_ends(manifest.model.num_layers)]
    return dict(zip(names, [*keys.layers, *keys.recurrent], strict=True))
