"""The texts of a training run: what it trains on, and what it is scored on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ouroboros.model.limits import check_ids
from ouroboros.text.corpus import read_whole, text_name
from ouroboros.text.overlap import SHARED_WORDS, Overlap
from ouroboros.text.windows import PackedWindows, load_eval_windows, load_windows

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from ouroboros.training.recipe import TrainOptions

OVERLAP_TOLD = 0.01
"""Share of a held-out text that may stand in the training text without a word."""


def read_texts(
    options: TrainOptions, vocab_size: int, tokenizer: Any, console: Console
) -> tuple[PackedWindows, dict[str, np.ndarray]]:
    """Returns the training windows and the held-out ones, int64 `[n, seq_len]` by text.

    Args:
        options: of the run.
        vocab_size: of the model, which has to have every token.
        tokenizer: the model's.
        console: where it is told what is not read, and of held-out text that is trained on.

    Raises:
        DataError: a text can't be used.
    """

    def say(line: str) -> None:
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)

    heldout = load_eval_windows(options.eval, tokenizer, options.seq_len, options.eval_windows, say)
    overlap = Overlap({text_name(path): read_whole(path) for path in options.eval})
    watch = overlap.look if options.eval else None
    windows = load_windows(options.data, tokenizer, options.seq_len, say, watch)
    for name, share in overlap.shares().items():
        if share >= OVERLAP_TOLD:
            say(
                f"warning: {share:.0%} of the runs of {SHARED_WORDS} words of held-out text "
                f"{name!r} stand in the training text too; its loss is not that of unseen text"
            )
    check_ids("the training text", windows.input_ids, vocab_size)
    for name, array in heldout.items():
        check_ids(f"held-out text {name!r}", array, vocab_size)
    return windows, heldout
