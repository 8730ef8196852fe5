"""Decoding with random tokens, to compare two backends."""

from __future__ import annotations

import numpy as np

from runtime.decode.decoder import Decoder


def decode(decoder: Decoder, rows: list[list[int]], tokens: int) -> np.ndarray:
    """Logits of a prompt and of random tokens after it, [tokens + 1, batch, V]."""
    generator = np.random.default_rng(0)
    found = [decoder.prefill(rows).copy()]
    for _ in range(tokens):
        found.append(decoder.step(generator.integers(3, 200, len(rows))).copy())
    return np.stack(found)
