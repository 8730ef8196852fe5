"""Held-out loss of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decode import request
from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.parity.metrics import log_softmax

BATCH = 4


def score_windows(
    engine: Engine,
    windows: NDArray[Any],
    depth: int | None = None,
    prefix: int = 0,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> float:
    """The mean next-token loss over windows of text, in nats a predicted token.

    Args:
        engine: an open bundle.
        windows: int64 [n, length], each window scored on its own.
        depth: recurrences; None takes the bundle's default.
        prefix: predictions skipped at the start of each window. A model with `mean` pooling sees
            the whole prefix at once and keeps its mean for what follows, so that nothing it
            predicts was in the mean; it needs a prefix of at least 1.
        batch: windows fed together, at most; fewer where the engine takes fewer.
        progress: called with the number of windows done after each batch.

    Raises:
        EngineError: windows of a wrong shape, an unknown token, a depth or prefix out of range.
    """
    if windows.ndim != 2 or windows.shape[0] == 0 or windows.shape[1] < 2:
        raise EngineError(
            f"windows of shape {list(windows.shape)}", "allowed: [1.., 2..] token ids"
        )
    manifest, length = engine.manifest, windows.shape[1]
    if not 0 <= prefix < length - 1:
        raise EngineError(f"prefix={prefix} is outside 0..{length - 2} for windows of {length}")
    frozen_mean = manifest.model.pooling == "mean"
    if frozen_mean and prefix == 0:
        raise EngineError("a model with mean pooling is scored after a prefix", "give prefix >= 1")
    if windows.min() < 0 or windows.max() >= manifest.model.vocab_size:
        raise EngineError(
            f"a token id is outside the vocabulary 0..{manifest.model.vocab_size - 1}"
        )
    engine.check_length(length, 0)
    batch = min(batch, engine.max_batch or batch)
    depths = request.check_depths(depth, 1, manifest.depth)
    total = 0.0
    for first in range(0, len(windows), batch):
        rows = windows[first : first + batch]
        decoder = engine.new_decoder(depths * len(rows))
        start = 0
        if frozen_mean:
            decoder.prefill(list(rows[:, :prefix]))
            start = prefix
        for offset, logits in decoder.score(list(rows[:, start:-1])):
            position = start + offset
            skipped = max(0, prefix - position)
            if skipped >= logits.shape[1]:
                continue
            targets = rows[:, position + 1 + skipped : position + 1 + logits.shape[1]]
            log_p = log_softmax(logits[:, skipped:])
            chosen = np.take_along_axis(log_p, targets[..., None], axis=-1)
            total -= float(chosen.sum(dtype=np.float64))
        if progress is not None:
            progress(min(first + batch, len(windows)))
    return float(total / (len(windows) * (length - 1 - prefix)))
