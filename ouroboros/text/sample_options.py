"""How text is drawn from a model. Standard library only: `ouro sample --help` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ouroboros.errors import DataError
from runtime.options import option


@dataclass(frozen=True)
class SampleOptions:
    """Options of drawing text from an original model."""

    tokens: int = option(100_000, "draw at least so many in all")
    length: int = option(256, "tokens a text at most, its opening counted")
    openings: tuple[Path, ...] = option(
        (), "texts whose beginnings the drawn ones begin with; without, as a document; repeatable"
    )
    opening: int = option(16, "tokens copied from an opening")
    batch: int = option(64, "texts drawn together")
    temperature: float = option(1.0, "1 is the model's own distribution")
    seed: int = option(0, "of everything drawn")

    def __post_init__(self) -> None:
        """Validates every value.

        Raises:
            DataError: a value is not allowed.
        """
        least = {"tokens": 1, "length": 2, "opening": 1, "batch": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise DataError(
                    f"{name}={getattr(self, name)} is not allowed", f"give {low} or more"
                )
        if self.opening >= self.length:
            raise DataError(
                f"opening={self.opening} leaves nothing to draw of length={self.length}",
                "make the opening shorter",
            )
        if not 0 < self.temperature < float("inf"):
            raise DataError(
                f"temperature={self.temperature} is not allowed", "give more than 0; 1 is usual"
            )
