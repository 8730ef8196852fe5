"""Held-out loss of a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.decode import request
from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.parity.metrics import log_softmax

if TYPE_CHECKING:
    from runtime.bundle.manifest import ModelSpec

BATCH = 4


@dataclass(frozen=True)
class ScoredBundle:
    """A bundle with the face of a model that is scored beside others.

    Attributes:
        engine: the open bundle.
    """

    engine: Engine

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ScoredBundle:
        """Opens a bundle.

        Args:
            path: its directory.

        Raises:
            BundleError: it is not whole.
        """
        return cls(Engine.open(path))

    @property
    def name(self) -> str:
        """`trained`, or `converted` where it was never trained."""
        return "trained" if self.engine.manifest.depth.trained else "converted"

    @property
    def config(self) -> ModelSpec:
        """The model's dimensions."""
        return self.engine.manifest.model

    @property
    def folded(self) -> None:
        """A bundle does not say which layer it loops."""
        return None

    @property
    def max_depth(self) -> int:
        """The largest depth it runs."""
        return self.engine.manifest.depth.max

    def check_depth(self, depth: int | str) -> tuple[list[int], float]:
        """As `runtime.decode.request.choose_depths` of one row."""
        return request.choose_depths(depth, None, 1, self.engine.manifest.depth)

    def tokenizer(
        self, texts: Sequence[str], add_special_tokens: bool = True, **_: object
    ) -> dict[str, list[list[int]]]:
        """The token ids of texts, given and returned as transformers' tokenizers do."""
        encode = self.engine.codec.encode
        return {"input_ids": [encode(text, add_special_tokens) for text in texts]}

    def score(
        self,
        windows: NDArray[Any],
        depth: int | None,
        *,
        prefix: int = 0,
        advance: Callable[[int], None] | None = None,
    ) -> float:
        """As `score_windows`."""
        return score_windows(self.engine, windows, depth, prefix, advance=advance)

    def score_auto(
        self,
        windows: NDArray[Any],
        *,
        prefix: int,
        advance: Callable[[int], None] | None = None,
    ) -> tuple[float, float]:
        """As `score_auto`."""
        return score_auto(self.engine, windows, prefix, advance=advance)


def score_windows(
    engine: Engine,
    windows: NDArray[Any],
    depth: int | None = None,
    prefix: int = 0,
    batch: int = BATCH,
    advance: Callable[[int], None] | None = None,
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
        advance: called after each batch with the number of its windows.

    Raises:
        EngineError: windows of a wrong shape, an unknown token, a depth or prefix out of range.
    """
    depths = request.check_depths(depth, 1, engine.manifest.depth)
    return _score(engine, windows, depths[0], 0.0, prefix, batch, advance)[0]


def score_auto(
    engine: Engine,
    windows: NDArray[Any],
    prefix: int,
    halt_threshold: float | None = None,
    batch: int = BATCH,
    advance: Callable[[int], None] | None = None,
) -> tuple[float, float]:
    """As `score_windows`, each window at the depth that it chooses on its prefix.

    Args:
        engine: an open bundle, with a halter.
        windows: int64 [n, length].
        prefix: tokens at the start of each window that are its prompt, 1 at least.
        halt_threshold: None takes the bundle's.
        batch: windows fed together, at most.
        advance: called after each batch with the number of its windows.

    Returns:
        The mean loss of what follows the prompts, and the mean depth.

    Raises:
        EngineError: as `score_windows`, the bundle has no halter, or there is no prefix.
    """
    spec = engine.manifest.depth
    depths, threshold = request.choose_depths(request.AUTO, halt_threshold, 1, spec)
    if prefix == 0:
        raise EngineError("a depth is chosen on a prompt", "give prefix >= 1")
    return _score(engine, windows, depths[0], threshold, prefix, batch, advance)


def _score(
    engine: Engine,
    windows: NDArray[Any],
    depth: int,
    halt_threshold: float,
    prefix: int,
    batch: int,
    advance: Callable[[int], None] | None,
) -> tuple[float, float]:
    """The mean loss and the mean depth; above a threshold of 0 `depth` is the most."""
    if windows.ndim != 2 or windows.shape[0] == 0 or windows.shape[1] < 2:
        raise EngineError(
            f"windows of shape {list(windows.shape)}", "allowed: [1.., 2..] token ids"
        )
    manifest, length = engine.manifest, windows.shape[1]
    if not 0 <= prefix < length - 1:
        raise EngineError(
            f"prefix={prefix} is outside 0..{length - 2} for windows of {length}",
            "give one in it, or longer windows",
        )
    frozen_mean = manifest.model.pooling == "mean"
    if frozen_mean and prefix == 0:
        raise EngineError("a model with mean pooling is scored after a prefix", "give prefix >= 1")
    if windows.min() < 0 or windows.max() >= manifest.model.vocab_size:
        raise EngineError(
            f"a token id is outside the vocabulary 0..{manifest.model.vocab_size - 1}",
            "give ids of the bundle's own tokenizer",
        )
    engine.check_length(length, 0)
    batch = min(batch, engine.max_batch or batch)
    total, steps = 0.0, 0
    for first in range(0, len(windows), batch):
        rows = windows[first : first + batch]
        decoder = engine.new_decoder([depth] * len(rows), halt_threshold)
        start = 0
        if frozen_mean or halt_threshold:
            decoder.prefill(list(rows[:, :prefix]), halt_threshold)
            start = prefix
        if halt_threshold:
            engine.warn_untrained(decoder.cache.row_depth.tolist())
        steps += int(decoder.cache.row_depth.sum())
        for offset, logits in decoder.score(list(rows[:, start:-1])):
            position = start + offset
            skipped = max(0, prefix - position)
            if skipped >= logits.shape[1]:
                continue
            targets = rows[:, position + 1 + skipped : position + 1 + logits.shape[1]]
            log_p = log_softmax(logits[:, skipped:])
            chosen = np.take_along_axis(log_p, targets[..., None], axis=-1)
            total -= float(chosen.sum(dtype=np.float64))
        if advance is not None:
            advance(len(rows))
    return float(total / (len(windows) * (length - 1 - prefix))), steps / len(windows)
