"""The texts of a training run: what it trains on, and what it is scored on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ouroboros.model.limits import check_ids
from ouroboros.text.boundaries import encode
from ouroboros.text.files import find_files, require_readable, text_name
from ouroboros.text.overlap import SHARED_WORDS, Overlap
from ouroboros.text.windows import (
    PackedWindows,
    check_eval_sizes,
    cut_eval_texts,
    load_windows,
    read_eval_texts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from rich.console import Console

    from ouroboros.training.recipe import TrainOptions

OVERLAP_TOLD = 0.01
"""Share of a held-out text that may stand in the training text without a word."""


def read_heldout(options: TrainOptions, console: Console) -> dict[Path, str]:
    """Returns the held-out texts of a run, once its training texts are found to be there.

    No model is needed, so that a text that is not there is told of before one is loaded.

    Args:
        options: of the run.
        console: where it is told what is not read.

    Raises:
        DataError: a text can't be read.
    """
    require_readable(find_files(options.data))
    if options.eval:
        check_eval_sizes(options.seq_len, options.eval_windows)
    return read_eval_texts(options.eval, lambda line: _say(console, line))


def read_texts(
    options: TrainOptions,
    held: Mapping[Path, str],
    vocab_size: int,
    tokenizer: Any,
    console: Console,
) -> tuple[PackedWindows, dict[str, np.ndarray]]:
    """Returns the training windows and the held-out ones, int64 `[n, seq_len]` by text.

    Args:
        options: of the run.
        held: the held-out texts, from `read_heldout`.
        vocab_size: of the model, which has to have every token.
        tokenizer: the model's.
        console: where it is told what is not read, and of held-out text that is trained on.

    Raises:
        DataError: a text can't be used.
    """

    def say(line: str) -> None:
        _say(console, line)

    heldout = cut_eval_texts(held, tokenizer, options.seq_len, options.eval_windows)
    watched: dict[str, str] = {}
    for path, text in held.items():
        name = text_name(path)
        whole = f"held-out text {name!r}"
        # Of a long one only the start is scored: what overlaps there may be little of the whole.
        watched[whole] = text
        watched[f"what is scored of {whole}"] = _start_of(text, tokenizer, heldout[name].size)
    overlap = Overlap(watched)
    watch = overlap.look if watched else None
    windows = load_windows(options.data, tokenizer, options.seq_len, say, watch)
    shares = list(overlap.shares().items())
    for both in zip(shares[::2], shares[1::2], strict=True):
        text, share = max(both, key=lambda one: one[1])
        if share >= OVERLAP_TOLD:
            say(
                f"warning: {share:.0%} of the runs of {SHARED_WORDS} words of {text} stand in the "
                "training text too; its loss is not that of unseen text"
            )
    check_ids("the training text", windows.input_ids, vocab_size)
    for name, array in heldout.items():
        check_ids(f"held-out text {name!r}", array, vocab_size)
    return windows, heldout


def _start_of(text: str, tokenizer: Any, tokens: int) -> str:
    """Returns about what the first so many tokens of a text stand for."""
    start = text[: 8 * tokens]
    (ids,) = encode(tokenizer, [start])
    return start[: math.ceil(len(start) * tokens / max(1, len(ids)))]


def _say(console: Console, line: str) -> None:
    console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
