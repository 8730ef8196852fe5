"""Feeds a batch of sequences through the graph, in chunks or a token at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import contract
from runtime.bundle.contract import NEW_PREFIX, PREFILL_CHUNK, SCORE_CHUNK, Tensor
from runtime.decode.kv_cache import Keys, KVCache
from runtime.errors import EngineError

if TYPE_CHECKING:
    from runtime.backends.memory import Backend, Bound, Buffer, Memory
    from runtime.bundle.manifest import Manifest

Array = NDArray[Any]
Tokens = Sequence[int] | Array


class Decoder:
    """A batch that advances through the graph together, with its cache. Used from one thread.

    Rows that are fed different numbers of tokens in one call are padded on the left; the padding
    never enters the cache. Rows may come and go between calls.

    Attributes:
        cache: of every row; to be changed through this object only.
        run_s: seconds spent inside ONNX Runtime or TensorRT so far.
    """

    def __init__(
        self,
        backend: Backend,
        manifest: Manifest,
        row_depth: Sequence[int],
        memory: Memory | None = None,
    ) -> None:
        """A batch of empty rows.

        Args:
            backend: what runs the graph.
            manifest: of the graph.
            row_depth: recurrences of each row.
            memory: of the backend; None makes one.
        """
        self._backend = backend
        self._memory = backend.new_memory() if memory is None else memory
        self._manifest = manifest
        self.run_s = 0.0
        self.cache = KVCache(manifest, self._memory, row_depth, backend.max_slots)
        self._step: _Step | None = None

    @property
    def host_bytes(self) -> int:
        """See `Memory.host_bytes`."""
        return self._memory.host_bytes

    def beside(self, row_depth: Sequence[int]) -> Decoder:
        """Another batch of empty rows in the same memory, whose rows this one can admit."""
        return Decoder(self._backend, self._manifest, row_depth, self._memory)

    def admit(self, row: int, prefilled: Decoder, source: int = 0) -> None:
        """Adds a row that was fed in a batch of its own; see `KVCache.admit`.

        Args:
            row: an empty row, or the number of rows: one more.
            prefilled: from `beside`; it stays as it is.
            source: which row of it.

        Raises:
            EngineError: the row is not free, or the other batch lies in another memory.
        """
        self.cache.admit(row, prefilled.cache, source)
        self._step = None

    def evict(self, row: int) -> None:
        """Takes a row out of the batch; the last row takes its place.

        Raises:
            EngineError: there is no such row.
        """
        self.cache.evict(row)
        self._step = None

    def truncate(self, row: int, length: int) -> None:
        """Forgets a row's tokens from `length` on; see `KVCache.truncate`.

        Raises:
            EngineError: the row can't be cut there.
        """
        self.cache.truncate(row, length)

    def prefill(self, rows: Sequence[Tokens], halt_threshold: float = 0.0) -> Array:
        """Feeds new tokens, as many a row as it has, and returns the last logits of each row.

        Prompts of a new batch that differ much in length are fed apart.

        Args:
            rows: token ids, one sequence a row, none empty.
            halt_threshold: above 0 each row of a new batch chooses its depth, at most the one it
                has: on its whole prompt or, of a prompt longer than a call, on what the first call
                holds. `cache.row_depth` tells it.

        Returns:
            float32 [batch, V], the caller's to keep.

        Raises:
            EngineError: the rows hold tokens already, and their depth is fixed.
        """
        if halt_threshold:
            return self._choose(rows, halt_threshold)
        lengths = [len(row) for row in rows]
        groups = group_lengths(lengths, self._backend.call_tokens)
        if len(groups) == 1 or self.cache.longest:
            return self._prefill(rows)
        depths = self.cache.row_depth.tolist()
        logits = np.empty((len(rows), self._manifest.model.vocab_size), np.float32)
        self.cache.reserve(max(lengths))
        for group in groups:
            part = self.beside([depths[row] for row in group])
            logits[group] = part._prefill([rows[row] for row in group])
            self.run_s += part.run_s
            for source, row in enumerate(group):
                self.admit(row, part, source)
        return logits

    def score(self, rows: Sequence[Tokens]) -> Iterator[tuple[int, Array]]:
        """Feeds new tokens and yields the logits of all their positions, a chunk at a time.

        Between two chunks the caller may not change the batch.

        Args:
            rows: token ids, one sequence a row, none empty; shorter rows are padded on the left.

        Yields:
            The chunk's first position and its logits, float32 [batch, chunk, V].
        """
        most = _least(SCORE_CHUNK, self._backend.max_new_tokens, self._backend.max_logits)
        for start, (ids, valid) in self._chunks(rows, most):
            index = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
            yield start, self._run(ids, valid, np.ascontiguousarray(index))

    def step(self, tokens: Tokens) -> Array:
        """Feeds one token a row.

        Args:
            tokens: token ids, one a row.

        Returns:
            float32 [batch, V], a view which the next step overwrites.

        Raises:
            EngineError: there is no row, or not one token a row.
        """
        cache = self.cache
        if len(tokens) != cache.batch or not cache.batch:
            raise EngineError(
                f"{len(tokens)} tokens for a batch of {cache.batch} rows", "give one a row"
            )
        step = self._step
        if cache.reserve(cache.longest + 1) or step is None:
            step = self._step = self._new_step(step)
        step.ids[:, 0] = tokens
        self.run_s += step.bound.run()
        cache.append(step.new, step.pool, step.counts, step.index)
        return self._memory.read(step.logits)[:, 0]

    def _choose(self, rows: Sequence[Tokens], threshold: float) -> Array:
        """As `prefill`, of a new batch whose rows choose their depths."""
        if self.cache.longest:
            raise EngineError(
                "these rows hold tokens already: a depth is chosen on a prompt, and stays fixed",
                "choose it with the first tokens",
            )
        lengths = [len(row) for row in rows]
        most = _least(PREFILL_CHUNK, self._backend.max_new_tokens)
        if self._manifest.model.pooling == "mean":
            most = max(lengths)  # the mean too is of the whole prompt
        depths = self.cache.row_depth.copy()
        logits = np.empty((len(rows), self._manifest.model.vocab_size), np.float32)
        parts: list[tuple[Decoder, list[int]]] = []
        for group in group_lengths([min(one, most) for one in lengths], self._backend.call_tokens):
            part = self.beside(depths[group].tolist())
            ids, valid = pad_left([rows[row][:most] for row in group])
            index = np.full((len(group), 1), ids.shape[1] - 1)
            logits[group] = part._run(ids, valid, index, threshold)[:, -1]
            depths[group] = part.cache.row_depth
            parts.append((part, group))
        # Empty rows of the depths that were chosen: no room is held for steps that none has.
        self.cache = KVCache(self._manifest, self._memory, depths.tolist(), self._backend.max_slots)
        self._step = None
        self.cache.reserve(max(lengths))
        for part, group in parts:
            self.run_s += part.run_s
            for source, row in enumerate(group):
                self._go_on(row, part, source, rows[row][most:], logits)
        return logits

    def _go_on(self, row: int, part: Decoder, source: int, rest: Tokens, logits: Array) -> None:
        """Takes a row over from `part`, with the tokens that are left of its prompt."""
        if len(rest):
            alone = self.beside([int(part.cache.row_depth[source])])
            alone.admit(0, part, source)
            logits[row] = alone._prefill([rest])[0]
            self.run_s += alone.run_s
            part, source = alone, 0
        self.admit(row, part, source)

    def _prefill(self, rows: Sequence[Tokens]) -> Array:
        logits = np.empty((0, 0), np.float32)
        most = _least(PREFILL_CHUNK, self._backend.max_new_tokens)
        for _, (ids, valid) in self._chunks(rows, most):
            logits = self._run(ids, valid, np.full((len(rows), 1), ids.shape[1] - 1))[:, -1]
        return logits

    def _chunks(
        self, rows: Sequence[Tokens], size: int
    ) -> Iterator[tuple[int, tuple[Array, Array]]]:
        """Ids and validity, both int64 [batch, tokens], of up to `size` positions each."""
        ids, valid = pad_left(rows)
        total = ids.shape[1]
        if self._manifest.model.pooling == "mean" and 0 in self.cache.lengths:
            size = total  # the mean is frozen on what the first call holds: all of the prompt
        for start in range(0, total, size):
            part = (slice(None), slice(start, start + size))
            yield start, (np.ascontiguousarray(ids[part]), np.ascontiguousarray(valid[part]))

    def _run(
        self, ids: Array, valid: Array, logit_index: Array, halt_threshold: float = 0.0
    ) -> Array:
        """One call with its own buffers; returns float32 [batch, K, V]."""
        cache, (batch, tokens) = self.cache, ids.shape
        asked = logit_index.shape[1]
        new, pool = cache.new_keys(tokens), cache.new_sums(asked)
        logits = self._new(contract.LOGITS_OUTPUT, batch, asked)
        positions = np.maximum(cache.positions + np.cumsum(valid, axis=1) - 1, 0)
        inputs = (ids, positions, cache.mask_with(valid), logit_index.astype(np.int64))
        used = self._new_used(batch)
        self.run_s += self._bind(inputs, logits, pool, new, used, halt_threshold).run()
        if used is not None and halt_threshold:
            cache.settle(self._memory.read(used).tolist())
        if cache.reserve(cache.longest + tokens):
            self._step = None
        cache.append(new, pool, valid.sum(axis=1).tolist(), logit_index)
        return self._memory.read(logits)

    def _new_step(self, last: _Step | None) -> _Step:
        """The buffers of a decoding step, the last ones where rows and depth are the same."""
        cache = self.cache
        if last is None:
            batch, ones = cache.batch, [1] * cache.batch
            ids, index = (np.zeros((batch, 1), np.int64) for _ in range(2))
            logits = self._new(contract.LOGITS_OUTPUT, batch, 1)
            new, pool = cache.new_keys(1), cache.new_sums(1)
        else:
            ids, index, ones = last.ids, last.index, last.counts
            logits, new, pool = last.logits, last.new, last.pool
        used = self._new_used(cache.batch)
        bound = self._bind((ids, cache.positions, cache.valid, index), logits, pool, new, used)
        return _Step(bound, ids, index, ones, logits, new, pool)

    def _new_used(self, batch: int) -> Buffer | None:
        """What receives the steps that each row has had, int64 [batch]; None without a halter."""
        return self._new(contract.HALT_OUTPUT, batch, 1) if self._manifest.model.halting else None

    def _new(self, output: Tensor, batch: int, asked: int) -> Buffer:
        """What receives an output for so many rows, with logits at so many positions."""
        spec = output.resolve(self._manifest.model, self._manifest.precision)
        shape = contract.resolve_shape(spec.shape, {contract.BATCH: batch, contract.PICKED: asked})
        return self._memory.zeros(shape, spec.dtype)

    def _bind(
        self,
        inputs: tuple[Array, Array, Array, Array],
        logits: Buffer,
        pool: Buffer,
        new: Keys,
        used: Buffer | None,
        halt_threshold: float = 0.0,
    ) -> Bound:
        """Binds a call's ids, positions, mask and logit index, and what receives its outputs."""
        ids, positions, mask, index = inputs
        cache = self.cache
        fed = {
            contract.INPUT_IDS: ids,
            contract.POSITION_IDS: positions,
            contract.ATTENTION_MASK: mask,
            contract.DEPTH: _one_number(contract.DEPTH_INPUT, cache.depth),
            contract.ROW_DEPTH: cache.row_depth,
            contract.LOGIT_INDEX: index,
            **cache.named(),
        }
        read = {
            contract.LOGITS: logits,
            contract.POOL_SUM: next(iter(pool)),
            **new.named(self._manifest, cache.batch, NEW_PREFIX),
        }
        if used is not None:
            fed[contract.HALT_THRESHOLD] = _one_number(contract.HALT_INPUT, halt_threshold)
            read[contract.DEPTH_USED] = used
        graph = self._manifest.graphs.onnx
        for tensors, given in ((graph.inputs, fed), (graph.outputs, read)):
            if problem := contract.find_unfed(tensors, given):
                raise EngineError(problem, "update ouroboros, or export the bundle again")
        return self._backend.bind(self._memory, fed, read)


class _Step:
    """What a decoding step reads and writes; bound again only when the cache or its rows change."""

    def __init__(
        self,
        bound: Bound,
        ids: Array,
        index: Array,
        counts: list[int],
        logits: Buffer,
        new: Keys,
        pool: Buffer,
    ) -> None:
        self.bound = bound
        self.ids, self.index, self.counts = ids, index, counts
        self.logits, self.new, self.pool = logits, new, pool


def pad_left(rows: Sequence[Tokens]) -> tuple[Array, Array]:
    """Token ids of rows behind zeros, and which of them are valid, both int64 [batch, tokens]."""
    total = max(len(row) for row in rows)
    ids, valid = (np.zeros((len(rows), total), np.int64) for _ in range(2))
    for index, row in enumerate(rows):
        ids[index, total - len(row) :] = row
        valid[index, total - len(row) :] = 1
    return ids, valid


def group_lengths(lengths: Sequence[int], call_tokens: int) -> list[list[int]]:
    """Which sequences are fed in one call: such that padding never costs more than a call would.

    Args:
        lengths: of the sequences.
        call_tokens: tokens that cost as much as a call more.

    Returns:
        Their numbers in groups, those of one group in order.
    """
    groups: list[list[int]] = []
    padding = 0
    for number in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        if groups:
            padding += lengths[groups[-1][0]] - lengths[number]
        if not groups or padding > call_tokens:
            groups.append([])
            padding = 0
        groups[-1].append(number)
    return [sorted(group) for group in groups]


def _one_number(tensor: Tensor, value: float) -> Array:
    """An input of one number for all rows."""
    return np.full(contract.resolve_shape(tensor.shape, {}), value, tensor.dtype)


def _least(size: int, *limits: int | None) -> int:
    """A chunk's size, or the least of a plan's limits."""
    return min([size, *(limit for limit in limits if limit is not None)])
