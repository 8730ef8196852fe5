"""Sizes that integer weights come in. Standard library only: `ouro --help` reads it."""

from __future__ import annotations

BITS = (4, 8)
"""Of an integer."""

BLOCKS = (32, 64, 128)
"""Inputs that share a scale."""
