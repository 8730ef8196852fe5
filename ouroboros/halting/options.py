"""How a halter is made. Standard library only: `ouro halter --help` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ouroboros.errors import DataError
from ouroboros.model.halters import HALTERS
from runtime.options import option

KINDS = tuple(one for one in HALTERS if one != "none")


@dataclass(frozen=True)
class HalterOptions:
    """Options of giving a checkpoint a halter."""

    data: tuple[Path, ...] = option((), "text files or folders to observe the model on; repeatable")
    kind: str = option("trained", "trained, or the untrained confidence or distance")
    depth: int | None = option(
        None, "the most steps it may choose; default: the deepest that was trained"
    )
    price: float = option(0.005, "loss, in nats a token, that a step more must be worth")
    windows: int = option(96, "windows of text observed")
    seq_len: int = option(256, "tokens a window")
    prompts: int = option(6, "prompts that each window is cut into")
    seed: int = option(0, "of the choice of windows")

    def __post_init__(self) -> None:
        """Validates every value.

        Raises:
            DataError: a value is not allowed.
        """
        if self.kind not in KINDS:
            raise DataError(
                f"kind={self.kind!r:.60} is unknown", f"choose one of {', '.join(KINDS)}"
            )
        least = {"depth": 1, "windows": 5, "seq_len": 8, "prompts": 1, "seed": 0}
        for name, low in least.items():
            given = getattr(self, name)
            if given is not None and given < low:
                raise DataError(f"{name}={given} is not allowed", f"give {low} or more")
        if self.prompts > self.seq_len // 4:
            raise DataError(
                f"prompts={self.prompts} are too many for windows of {self.seq_len} tokens",
                f"give {self.seq_len // 4} or fewer",
            )
        if not 0 <= self.price < float("inf"):
            raise DataError(f"price={self.price} is not allowed", "give 0 or more nats a step")
