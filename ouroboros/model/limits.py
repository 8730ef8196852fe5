"""What a model can read: sequences as long as its positions, ids of its vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ouroboros.errors import DataError

if TYPE_CHECKING:
    import numpy as np


def check_seq_len(seq_len: int, max_positions: int, option: str = "seq_len") -> None:
    """Refuses sequences longer than the positions a model was made for.

    Args:
        seq_len: tokens a window.
        max_positions: the model's `max_position_embeddings`.
        option: what the message calls it.

    Raises:
        DataError: `seq_len` is above it.
    """
    if seq_len > max_positions:
        raise DataError(
            f"{option}={seq_len} is more than the model's {max_positions} positions",
            f"give {max_positions} or less",
        )


def check_ids(name: str, ids: np.ndarray, vocab_size: int) -> None:
    """Refuses token ids that a model has no embedding for.

    Args:
        name: what errors call the text.
        ids: token ids, of any shape.
        vocab_size: the model's.

    Raises:
        DataError: An id is outside 0..vocab_size - 1.
    """
    greatest = int(ids.max())
    if greatest >= vocab_size:
        raise DataError(
            f"{name}: the tokenizer gives token id {greatest}, the model's vocabulary is "
            f"0..{vocab_size - 1}",
            "put the model's own tokenizer beside its weights",
        )
