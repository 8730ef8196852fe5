"""The gap between a plainly shortened original and the whole: what folding is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ouroboros.errors import ConfigError

if TYPE_CHECKING:
    from ouroboros.model.configuration import OuroborosConfig


def share_of_gap(loss: float, plain: float, full: float) -> float:
    """Returns the share of the gap between a plainly shortened model and the whole that is closed.

    Args:
        loss: of the model that is judged; this and the others in nats a token, on the same windows.
        plain: of the shortened one: 0.
        full: of the whole: 1.
    """
    return (plain - loss) / (plain - full)


@dataclass(frozen=True)
class Shortened:
    """Which layers of an original a plainly shortened one keeps, each run once and nothing trained.

    Attributes:
        prelude: first layers.
        looped: original indices of the layers between, possibly none.
        coda: last layers.
    """

    prelude: int
    looped: range
    coda: int

    @classmethod
    def of(cls, config: OuroborosConfig) -> Shortened:
        """Those that a folded model keeps."""
        return cls(config.prelude, config.looped_layers(), config.coda)

    def check(self, layers: int) -> None:
        """Refuses what a model of so many layers has not.

        Raises:
            ConfigError: they overlap, or are more than it has.
        """
        inner = self.looped or range(self.prelude, self.prelude)
        if not 0 <= self.prelude <= inner.start <= inner.stop <= layers - self.coda <= layers:
            raise ConfigError(
                f"{self} can't be kept of {layers} layers",
                "give first layers, layers between and last layers that do not overlap",
            )

    def __str__(self) -> str:
        between = ", ".join(str(index) for index in self.looped)
        middle = f"layer {between}" if len(self.looped) == 1 else f"layers {between}"
        return " + ".join([str(self.prelude), *([middle] if between else []), str(self.coda)])
