"""Prompts at depths of their own, in one batch: python examples/batch_depths.py BUNDLE [DEPTH...].

Reads one prompt a line from the standard input. Depths are given to the prompts in turn; without
any, the bundle's least, default and greatest are used.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

from runtime import Engine
from runtime.errors import BundleError, EngineError


def answer(bundle: str, prompts: list[str], depths: Sequence[int]) -> None:
    """Generates from all prompts together and prints each with its depth.

    A row that has had its steps waits for the deepest one, and its text is the same as alone.

    Args:
        bundle: the bundle's directory.
        prompts: one text a row of the batch.
        depths: given to the prompts in turn; empty takes the bundle's least, default and greatest.

    Raises:
        BundleError: the bundle is not whole.
        EngineError: a depth outside the bundle's range, or a prompt that is too long.
    """
    with Engine.open(bundle) as engine:
        known = engine.manifest.depth
        turns = itertools.cycle(depths or (known.min, known.default, known.max))
        rows = [depth for depth, _ in zip(turns, prompts, strict=False)]
        results = engine.generate(prompts, depth=rows, max_new_tokens=32)
        for prompt, depth, result in zip(prompts, rows, results, strict=True):
            print(f"[depth {depth}] {prompt}{result.text} ({len(result.tokens)} tokens)")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} BUNDLE [DEPTH...] < PROMPTS")
    lines = [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        sys.exit("error: no prompts; give one a line on the standard input")
    try:
        answer(sys.argv[1], lines, [int(word) for word in sys.argv[2:]])
    except (BundleError, EngineError, ValueError) as error:
        sys.exit(f"error: {error}")
