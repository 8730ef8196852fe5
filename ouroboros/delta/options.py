"""Options of making a delta, which the command's help is made from."""

from __future__ import annotations

from dataclasses import dataclass

from ouroboros.errors import ConfigError
from runtime.options import option

LOSSLESS, BFLOAT16 = "lossless", "bfloat16"
MEGABYTE = 10**6


@dataclass(frozen=True)
class DeltaOptions:
    """How a delta is stored."""

    dtype: str = option(
        LOSSLESS, "lossless, or bfloat16: round what is stored to that, half the size"
    )
    adapter_rank: int = option(
        0,
        "with bfloat16: join what adapters added to a weight, run by run, into one update of at "
        "most this rank; 0 keeps them apart",
    )
    max_file_mb: int = option(16, "no file is larger than so many MB (a million bytes)")

    def __post_init__(self) -> None:
        """Validates every value.

        Raises:
            ConfigError: one is not allowed.
        """
        if self.dtype not in (LOSSLESS, BFLOAT16):
            raise ConfigError(
                f"dtype={self.dtype!r:.80} is unknown", f"choose {LOSSLESS} or {BFLOAT16}"
            )
        if self.adapter_rank < 0:
            raise ConfigError(
                f"adapter_rank={self.adapter_rank} is below 0", "give a rank, or 0 to join nothing"
            )
        if self.adapter_rank and self.dtype == LOSSLESS:
            raise ConfigError(
                f"adapter_rank={self.adapter_rank} changes the weights a little, and dtype is "
                f"{LOSSLESS}",
                f"give --dtype {BFLOAT16} too, or leave --adapter-rank out",
            )
        if self.max_file_mb < 1:
            raise ConfigError(f"max_file_mb={self.max_file_mb} is below 1", "give 1 or more")

    @property
    def max_file_bytes(self) -> int:
        """The limit in bytes."""
        return self.max_file_mb * MEGABYTE
