"""Feeds a batch of sequences through the graph, in chunks or a token at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.memory import Backend, Bound, Buffer
from runtime.bundle import contract
from runtime.bundle.contract import PREFILL_CHUNK, SCORE_CHUNK
from runtime.bundle.manifest import Manifest
from runtime.decode.kv_cache import KVCache, NewKeys
from runtime.errors import EngineError

Array = NDArray[Any]


class Decoder:
    """A batch that advances through the graph together, with its cache.

    Rows of different lengths are padded on the left. Used from one thread.

    Attributes:
        run_s: seconds spent inside ONNX Runtime or TensorRT so far.
    """

    def __init__(self, backend: Backend, manifest: Manifest, row_depth: Sequence[int]) -> None:
        self._backend = backend
        self._memory = backend.new_memory()
        self._manifest = manifest
        self.run_s = 0.0
        batch = len(row_depth)
        self.cache = KVCache(manifest, self._memory, batch, max(row_depth), backend.max_slots)
        self._depth = np.array([max(row_depth)], np.int64)
        self._row_depth = np.array(row_depth, np.int64)
        self._counts = np.zeros((batch, 1), np.int64)  # valid tokens a row
        # The buffers of a decoding step; bound again only when the cache grows.
        self._ids = np.zeros((batch, 1), np.int64)
        self._first = np.zeros((batch, 1), np.int64)
        self._logits = self._memory.zeros((batch, 1, manifest.model.vocab_size), "float32")
        self._new: NewKeys = self.cache.new_keys(1)
        self._pool = self._pool_buffer(1)
        self._binding: Bound | None = None

    @property
    def host_bytes(self) -> int:
        """See `Memory.host_bytes`."""
        return self._memory.host_bytes

    def prefill(self, rows: Sequence[Sequence[int] | Array]) -> Array:
        """Feeds new tokens, as many a row as it has, and returns the last logits of each row.

        Args:
            rows: token ids, one sequence a row, none empty.

        Returns:
            float32 [batch, V], the caller's to keep.
        """
        logits = np.empty((0, 0), np.float32)
        for _, (ids, valid) in self._chunks(
            rows, _least(PREFILL_CHUNK, self._backend.max_new_tokens)
        ):
            logits = self._run(ids, valid, np.full((len(rows), 1), ids.shape[1] - 1))[:, -1]
        return logits

    def score(self, rows: Sequence[Sequence[int] | Array]) -> Iterator[tuple[int, Array]]:
        """Feeds new tokens and yields the logits of all their positions, a chunk at a time.

        Args:
            rows: token ids, one sequence a row, none empty; shorter rows are padded on the left.

        Yields:
            The chunk's first position and its logits, float32 [batch, chunk, V].
        """
        most = _least(SCORE_CHUNK, self._backend.max_new_tokens, self._backend.max_logits)
        for start, (ids, valid) in self._chunks(rows, most):
            index = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
            yield start, self._run(ids, valid, np.ascontiguousarray(index))

    def step(self, tokens: Sequence[int] | Array) -> Array:
        """Feeds one token a row.

        Args:
            tokens: token ids, one a row.

        Returns:
            float32 [batch, V], a view which the next step overwrites.
        """
        cache = self.cache
        if cache.reserve(cache.length + 1) or self._binding is None:
            self._binding = self._bind_step()
        self._ids[:, 0] = tokens
        self.run_s += self._binding.run()
        cache.append(self._new, self._pool, 1)
        self._counts += 1  # bound as position_ids: the next token's position
        return self._memory.read(self._logits)[:, 0]

    def _chunks(
        self, rows: Sequence[Sequence[int] | Array], size: int
    ) -> Iterator[tuple[int, tuple[Array, Array]]]:
        """Ids and validity, both int64 [batch, tokens], of up to `size` positions each."""
        lengths = [len(row) for row in rows]
        total = max(lengths)
        ids = np.zeros((len(rows), total), np.int64)
        valid = np.zeros((len(rows), total), np.int64)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[index, total - length :] = row
            valid[index, total - length :] = 1
        if self._manifest.model.pooling == "mean" and self.cache.length == 0:
            size = total  # the mean is frozen on what the first call holds: all of the prompt
        for start in range(0, total, size):
            part = (slice(None), slice(start, start + size))
            yield start, (np.ascontiguousarray(ids[part]), np.ascontiguousarray(valid[part]))

    def _run(self, ids: Array, valid: Array, logit_index: Array) -> Array:
        """One call with its own buffers; returns float32 [batch, K, V]."""
        cache, (batch, tokens) = self.cache, ids.shape
        asked = logit_index.shape[1]
        new = cache.new_keys(tokens)
        pool = self._pool_buffer(asked)
        logits = self._memory.zeros((batch, asked, self._manifest.model.vocab_size), "float32")
        positions = np.maximum(self._counts + np.cumsum(valid, axis=1) - 1, 0)
        inputs = (ids, positions, cache.mask_with(valid), logit_index.astype(np.int64))
        self.run_s += self._bind(inputs, logits, pool, new).run()
        if cache.reserve(cache.length + tokens):
            self._binding = None
        cache.append(new, pool, valid)
        self._counts += valid.sum(axis=1, keepdims=True)
        return self._memory.read(logits)

    def _bind_step(self) -> Bound:
        inputs = (self._ids, self._counts, self.cache.valid, self._first)
        return self._bind(inputs, self._logits, self._pool, self._new)

    def _bind(
        self, inputs: tuple[Array, Array, Array, Array], logits: Buffer, pool: Buffer, new: NewKeys
    ) -> Bound:
        """Binds a call's ids, positions, mask and logit index, and what receives its outputs."""
        ids, positions, mask, index = inputs
        fed = {
            contract.INPUT_IDS: ids,
            contract.POSITION_IDS: positions,
            contract.ATTENTION_MASK: mask,
            contract.DEPTH: self._depth,
            contract.ROW_DEPTH: self._row_depth,
            contract.LOGIT_INDEX: index,
            **self.cache.named(),
        }
        read = {contract.LOGITS: logits, contract.POOL_SUM: pool, **new.named(self._manifest)}
        graph = self._manifest.graphs.onnx
        for tensors, given in ((graph.inputs, fed), (graph.outputs, read)):
            if problem := contract.find_unfed(tensors, given):
                raise EngineError(problem, "update ouroboros, or export the bundle again")
        return self._backend.bind(self._memory, fed, read)

    def _pool_buffer(self, asked: int) -> Buffer:
        shape = (self.cache.batch, self.cache.depth, asked, self._manifest.model.hidden_size)
        return self._memory.zeros(shape, "float32")


def _least(size: int, *limits: int | None) -> int:
    """A chunk's size, or the least of a plan's limits."""
    return min([size, *(limit for limit in limits if limit is not None)])
