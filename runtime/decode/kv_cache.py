"""The cache: buffers that grow by buckets and are bound to the graph as they are.

Every row of a batch has a length of its own: its tokens lie in its first slots, without holes, and
the slots behind them are zero and masked. Rows are admitted and evicted while others go on: the
rows of a batch are always the first ones of every buffer, so that a batch of fewer rows is bound
without a copy. New keys and values come out of the graph in buffers of their own and are copied
into their rows' next slots; nothing else of the cache is ever copied, except when it grows, shrinks
or a row moves. The memory, on the host or on a GPU, is the backend's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.backends.memory import Buffer, Memory, Span
from runtime.bundle import contract
from runtime.bundle.contract import BUCKET, PAST_POOL_SUM, PAST_PREFIX, TensorSpec, cache_ends
from runtime.errors import EngineError

if TYPE_CHECKING:
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
class Keys:
    """Buffers of keys and values: a cache's, or what receives those of new positions.

    Both are of the graph's type, float32, float16 or bfloat16.

    layers: [2 * layers, rows, kv, slots, hd], key and value of layer 0, of layer 1, ...
    recurrent: [2, rows, steps * looped layers, kv, slots, hd].
    """

    layers: Buffer
    recurrent: Buffer

    def named(self, manifest: Manifest, rows: int, prefix: str) -> dict[str, Buffer]:
        """The first rows, under the names of the graph's tensors with this prefix."""
        names = [f"{prefix}{end}" for end in cache_ends(manifest.model.num_layers)]
        parts = [*self.layers, *self.recurrent]
        return {name: part[:rows] for name, part in zip(names, parts, strict=True)}


class _Sums(NamedTuple):
    """Pooled sums that a call gave for a row.

    Attributes:
        pool: the call's, [1, rows, depth, K, d].
        row: the row's number in it.
        slots: of the cache, whose sums these are; -1 where a position was padding.
    """

    pool: Buffer
    row: int
    slots: list[int]


class KVCache:
    """Keys, values and pooled sums of the rows of a batch.

    Attributes:
        lengths: tokens that each row holds, in its first slots.
        longest: the most of them.
        row_depth: int64 [batch], recurrences of each row.
        positions: int64 [batch, 1], the lengths, which are the positions of the next tokens.
        capacity: slots there are.
        valid: int64 [batch, capacity + 1], 1 where a slot holds a token of its row; the last
            column stands for the one new token of a decoding step and is always 1.
    """

    def __init__(
        self, manifest: Manifest, memory: Memory, row_depth: Sequence[int], max_slots: int
    ) -> None:
        """A batch of empty rows.

        Args:
            manifest: of the graph.
            memory: that the buffers are made in.
            row_depth: of each row.
            max_slots: the most slots that the backend takes.
        """
        self._manifest = manifest
        self._memory = memory
        self._max_slots = max_slots
        self._past = contract.past_specs(manifest.model, manifest.precision)
        self._pooled = contract.POOL_OUTPUT.resolve(manifest.model, manifest.precision)
        self._first = [0] * len(row_depth)  # tokens of each row's first call
        self._sums: list[_Sums | None] = [None] * len(row_depth)
        self.lengths = [0] * len(row_depth)
        self.longest = 0
        self.row_depth = np.array(row_depth, np.int64)
        self.positions: Array
        self.valid: Array
        self._allocate(0, len(row_depth), max(row_depth, default=1))

    @property
    def batch(self) -> int:
        """Rows there are."""
        return len(self.lengths)

    @property
    def depth(self) -> int:
        """The most recurrences of a row; 1 where there is none."""
        return int(self.row_depth.max(initial=1))

    def reserve(self, slots: int, rows: int = 0, depth: int = 1) -> bool:
        """Makes room for as many slots, rows and steps; true if the buffers are new ones.

        Args:
            slots: of each row; the bucket which holds them is taken.
            rows: of the batch.
            depth: recurrences.
        """
        grows = slots > self.capacity
        if not grows and rows <= self._rows and depth <= self._steps:
            return False
        capacity = capacity_for(slots, self._max_slots) if grows else self.capacity
        self._replace(capacity, max(rows, self._rows), max(depth, self._steps))
        return True

    def named(self) -> dict[str, Buffer]:
        """The rows' buffers under the names of the graph's inputs."""
        shape = (self.batch, self._steps, self._manifest.model.hidden_size)
        pool = next(iter(self._pool))[: self.batch].reshape(shape)
        return {PAST_POOL_SUM: pool, **self._keys.named(self._manifest, self.batch, PAST_PREFIX)}

    def new_keys(self, tokens: int) -> Keys:
        """Buffers for the keys and values of `tokens` new positions of every row."""
        return self._make_keys(tokens, self.batch, self.depth)

    def new_sums(self, picked: int) -> Buffer:
        """A buffer for the pooled sums of `picked` positions, [1, batch, depth, picked, d]."""
        return self._make_sums(picked, self.batch, self.depth)

    def append(self, new: Keys, pool: Buffer, counts: Sequence[int], index: Array) -> None:
        """Copies new keys and values into each row's next slots, and keeps the last of the sums.

        Args:
            new: buffers which the graph has filled.
            pool: likewise, [1, batch, depth, K, d].
            counts: how many of the new positions hold a token of each row: its last ones.
            index: int64 [batch, K], the positions whose sums these are; the last one is the last.
        """
        memory, tokens, picked = self._memory, new.layers.shape[-2], pool.shape[-2]
        for span in _spans(self.lengths, counts, tokens):
            memory.copy(self._keys.layers, new.layers, span)
            memory.copy(self._keys.recurrent, new.recurrent, span)
        memory.copy(self._pool, pool, Span(0, 0, self.batch, 0, picked - 1, 1))
        for row, count in enumerate(counts):
            held = self.lengths[row]
            if held == 0:
                self._first[row] = count
            self._sums[row] = None
            if picked > 1:
                padding = tokens - count
                slots = [
                    held + one - padding if one >= padding else -1 for one in index[row].tolist()
                ]
                self._sums[row] = _Sums(pool, row, slots)
            self.valid[row, held : held + count] = 1
            self.lengths[row] = held + count
        self._measure()

    def admit(self, row: int, prefilled: KVCache, source: int = 0) -> None:
        """Copies a row of another cache in, with its keys, values, sums, length and depth.

        Args:
            row: an empty row, or the number of rows: one more.
            prefilled: made in the same memory; it stays as it is.
            source: which row of it.

        Raises:
            EngineError: the row is not free, or the caches lie in two memories.
        """
        if not (row == self.batch or (0 <= row < self.batch and self.lengths[row] == 0)):
            raise EngineError(
                f"row {row} of {self.batch} is not free",
                f"evict it first, or admit row {self.batch}",
            )
        if prefilled._memory is not self._memory:
            raise EngineError(
                "a row can't be admitted from another memory", "prefill it beside this batch"
            )
        length, depth = prefilled.lengths[source], int(prefilled.row_depth[source])
        self.reserve(length, row + 1, depth)
        if row == self.batch:
            self._add_row()
        self.row_depth[row] = depth
        self._first[row], self._sums[row] = prefilled._first[source], prefilled._sums[source]
        self._copy_row(row, prefilled, source, length)
        self.lengths[row] = length
        self.valid[row, :length] = 1
        self._measure()

    def evict(self, row: int) -> None:
        """Takes a row out of the batch; the last row takes its place.

        Raises:
            EngineError: there is no such row.
        """
        self._check_row(row)
        last = self.batch - 1
        if row != last:
            # What the row held beyond the last row's tokens becomes zero with the copy.
            held = max(self.lengths[row], self.lengths[last])
            self._copy_row(row, self, last, held)
            self.lengths[row] = self.lengths[last]
            self._first[row], self._sums[row] = self._first[last], self._sums[last]
            self.row_depth[row], self.valid[row] = self.row_depth[last], self.valid[last]
        self._clear(last, 0, self.lengths[last])
        for facts in (self.lengths, self._first, self._sums):
            del facts[last]
        self.row_depth, self.valid = self.row_depth[:last].copy(), self.valid[:last].copy()
        self.positions = np.zeros((last, 1), np.int64)
        self._measure()
        fitting = capacity_for(self.longest, self._max_slots)
        if not last:
            self._replace(0, 0, 1)
        elif 2 * fitting <= self.capacity:
            self._replace(fitting, self._rows, self._steps)

    def settle(self, row_depth: Sequence[int]) -> None:
        """Sets the depth of each row to that which its prompt has chosen, no more than it had.

        Raises:
            EngineError: the graph says another.
        """
        for took, most in zip(row_depth, self.row_depth.tolist(), strict=True):
            if not 1 <= took <= most:
                raise EngineError(
                    f"the graph says that a row took {took} steps, allowed are 1 to {most}",
                    "export the bundle again",
                )
        self.row_depth[:] = row_depth

    def truncate(self, row: int, length: int) -> None:
        """Forgets a row's last tokens.

        The sum of the last token kept is taken from those which the last call gave at its
        `logit_index`; a call that gave only the last sum lets nothing be taken back but everything.

        Args:
            row: of the batch.
            length: tokens to keep, at most as many as there are.

        Raises:
            EngineError: there is no such row, it holds fewer tokens, or the last call did not give
                the sum that is needed.
        """
        self._check_row(row)
        held = self.lengths[row]
        if not 0 <= length <= held:
            raise EngineError(f"row {row} holds {held} tokens, not {length}", f"allowed: 0..{held}")
        if length == held:
            return
        if length == 0:
            self._memory.clear(self._pool, row, 0, 1)
        else:
            self._restore_sum(row, length)
        self._clear(row, length, held - length)
        self.valid[row, length:held] = 0
        self.lengths[row] = length
        self._measure()

    def mask_with(self, valid: Array) -> Array:
        """The graph's attention_mask for new positions: int64 [batch, capacity + tokens]."""
        return np.concatenate([self.valid[:, : self.capacity], valid], axis=1)

    def _restore_sum(self, row: int, length: int) -> None:
        """Sets a row's sums to those at its token `length - 1`.

        Raises:
            EngineError: they are not known.
        """
        match self._manifest.model.pooling:
            case "causal":
                kept = self._sums[row]
                if kept is None or length - 1 not in kept.slots:
                    raise EngineError(
                        f"row {row} can't be cut to {length} tokens: the last call did not give the"
                        f" pooled sum at position {length - 1}",
                        "ask for it with logit_index, or feed the row anew",
                    )
                place = kept.slots.index(length - 1)
                self._memory.copy(self._pool, kept.pool, Span(row, kept.row, 1, 0, place, 1))
            case "mean" if length < self._first[row]:
                raise EngineError(
                    f"row {row} can't be cut to {length} tokens: its mean is that of the first "
                    f"{self._first[row]}",
                    f"keep at least {self._first[row]}, or feed the row anew",
                )
            case _:
                pass  # the mean stays frozen; `token` pooling uses no sum

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.batch:
            raise EngineError(f"there is no row {row}", f"the batch has {self.batch} rows, from 0")

    def _add_row(self) -> None:
        self.lengths.append(0)
        self._first.append(0)
        self._sums.append(None)
        self.row_depth = np.append(self.row_depth, 1)
        self.positions = np.zeros((self.batch, 1), np.int64)
        self.valid = np.concatenate([self.valid, _masked(1, self.capacity)])

    def _measure(self) -> None:
        self.longest = max(self.lengths, default=0)
        self.positions[:, 0] = self.lengths

    def _copy_row(self, row: int, other: KVCache, source: int, slots: int) -> None:
        span = Span(row, source, 1, 0, 0, slots)
        self._memory.copy(self._keys.layers, other._keys.layers, span)
        self._memory.copy(self._keys.recurrent, other._keys.recurrent, span)
        self._memory.copy(self._pool, other._pool, span._replace(slots=1))

    def _clear(self, row: int, first: int, count: int) -> None:
        self._memory.clear(self._keys.layers, row, first, count)
        self._memory.clear(self._keys.recurrent, row, first, count)

    def _replace(self, capacity: int, rows: int, steps: int) -> None:
        """Moves what there is to buffers of another size."""
        keys, pool, valid = self._keys, self._pool, self.valid
        self._allocate(capacity, rows, steps)
        span = Span(0, 0, self.batch, 0, 0, self.longest)
        self._memory.copy(self._keys.layers, keys.layers, span)
        self._memory.copy(self._keys.recurrent, keys.recurrent, span)
        self._memory.copy(self._pool, pool, span._replace(slots=1))
        self.valid[:, : self.longest] = valid[:, : self.longest]
        self._measure()

    def _allocate(self, capacity: int, rows: int, steps: int) -> None:
        self.capacity, self._rows, self._steps = capacity, rows, steps
        self._keys = self._make_keys(capacity, rows, steps)
        self._pool = self._make_sums(1, rows, steps)
        self.valid = _masked(self.batch, capacity)
        self.positions = np.zeros((self.batch, 1), np.int64)

    def _make_keys(self, slots: int, rows: int, steps: int) -> Keys:
        sizes = {contract.BATCH: rows, contract.PAST: slots, contract.SLOTS: steps}
        kept, looped = self._past
        layers = self._stack(sizes, 2 * self._manifest.model.num_layers, kept)
        return Keys(layers, self._stack(sizes, 2, looped))

    def _make_sums(self, picked: int, rows: int, steps: int) -> Buffer:
        sizes = {contract.BATCH: rows, contract.DEPTH: steps, contract.PICKED: picked}
        return self._stack(sizes, 1, self._pooled)

    def _stack(self, sizes: dict[str, int], count: int, spec: TensorSpec) -> Buffer:
        return self._memory.stack(count, contract.resolve_shape(spec.shape, sizes), spec.dtype)


def _masked(rows: int, capacity: int) -> Array:
    """`KVCache.valid` of empty rows."""
    valid = np.zeros((rows, capacity + 1), np.int64)
    valid[:, capacity] = 1
    return valid


def _spans(lengths: Sequence[int], counts: Sequence[int], tokens: int) -> Iterator[Span]:
    """The copies that put new tokens behind each row's last, neighbours of one length together."""
    row = 0
    for (length, count), same in groupby(zip(lengths, counts, strict=True)):
        rows = sum(1 for _ in same)
        if count:
            yield Span(row, row, rows, length, tokens - count, count)
        row += rows
