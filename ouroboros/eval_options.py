"""On how much text a model is scored. Little is imported: `ouro eval --help` reads it."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.options import option

DEPTHS = (1, 4, 8, 16)
"""Depths scored where none are asked for, of those that the model runs."""


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation: the windows that are cut from each text."""

    windows: int = option(8, "windows scored of each text")
    seq_len: int = option(512, "tokens a window")

    def __post_init__(self) -> None:
        """Validates every value.

        Raises:
            DataError: they score nothing.
        """
        from ouroboros.text.windows import check_eval_sizes

        check_eval_sizes(self.seq_len, self.windows)
