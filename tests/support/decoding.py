"""Decoding with random tokens, to compare two backends, and a backend that is watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.backends.memory import Backend, Bound, Memory
from runtime.bundle.contract import INPUT_IDS
from runtime.decode.decoder import Decoder


def decode(decoder: Decoder, rows: list[list[int]], tokens: int) -> np.ndarray:
    """Logits of a prompt and of random tokens after it, [tokens + 1, batch, V]."""
    generator = np.random.default_rng(0)
    found = [decoder.prefill(rows).copy()]
    for _ in range(tokens):
        found.append(decoder.step(generator.integers(3, 200, len(rows))).copy())
    return np.stack(found)


class WatchedBackend:
    """A backend as it is, which notes every run.

    Attributes:
        fed: rows and new tokens of each run.
        shapes: of the inputs of the last run.
    """

    def __init__(self, real: Backend) -> None:
        self.name, self.max_slots, self.max_batch = real.name, real.max_slots, real.max_batch
        self.max_new_tokens, self.max_logits = real.max_new_tokens, real.max_logits
        self.call_tokens = real.call_tokens
        self.fed: list[tuple[int, int]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._real = real

    def new_memory(self) -> Memory:
        return self._real.new_memory()

    def bind(self, memory: Memory, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Bound:
        return _WatchedRun(self, self._real.bind(memory, inputs, outputs), inputs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self._real.run(inputs)


class _WatchedRun:
    def __init__(self, watched: WatchedBackend, real: Bound, inputs: Mapping[str, Any]) -> None:
        self._watched, self._real = watched, real
        self._shapes = {name: one.shape for name, one in inputs.items()}

    def run(self) -> float:
        rows, tokens = self._shapes[INPUT_IDS]
        self._watched.fed.append((rows, tokens))
        self._watched.shapes = self._shapes
        return self._real.run()
