"""Sizes that integer weights come in. Standard library only: `ouro --help` reads it."""

from __future__ import annotations

from collections.abc import Sequence

BITS = (4, 8)
"""Of an integer."""

BLOCKS = (32, 64, 128)
"""Inputs that share a scale."""


def fitting_blocks(inputs: Sequence[int]) -> list[int]:
    """Returns the blocks that cut every matrix evenly.

    Args:
        inputs: of each matrix.
    """
    return [block for block in BLOCKS if all(one % block == 0 for one in inputs)]
