"""What is measured of a bundle. Standard library only: `ouro bench --help` reads it."""

from __future__ import annotations

import dataclasses

from runtime.options import option

CONTEXTS = (64, 1024)
"""Tokens before the measured ones where none are asked for."""


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Options of a measurement: every depth at every context, `repeats` times."""

    depths: tuple[int, ...] = option(
        (), "such as 1,4,8 or 1-4; default: the bundle's own", "--depth"
    )
    contexts: tuple[int, ...] = option(
        (),
        "tokens before the measured ones; default: of "
        f"{','.join(map(str, CONTEXTS))} what the model holds",
        "--context",
    )
    tokens: int = option(32, "tokens decoded a run")
    repeats: int = option(3, "runs of each; the median counts")
