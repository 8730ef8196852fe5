"""The kinds of halter a model can have, and what its config may say of one."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from ouroboros.errors import ConfigError

if TYPE_CHECKING:
    from ouroboros.model.configuration import OuroborosConfig

HALTERS = ("none", "trained", "confidence", "distance")
"""What tells that a row has had enough steps; see `ouroboros.model.halting`."""

AUTO = "auto"
"""The depth of a call that leaves the choice to the model."""

HOW = "`ouro halter CHECKPOINT OUT` makes one"


def check_halter(config: OuroborosConfig) -> None:
    """Checks threshold and depth of a config that has a halter.

    Raises:
        ConfigError: one is outside what is allowed.
    """
    if config.halter == "none":
        return
    if not 0 < config.halt_threshold <= 1:
        raise ConfigError(
            f"halt_threshold={config.halt_threshold} is outside what a halting score reaches",
            "give more than 0 and at most 1",
        )
    if not 1 <= config.halt_depth <= config.max_depth:
        raise ConfigError(
            f"halt_depth={config.halt_depth} is outside this model's range 1..{config.max_depth}",
            "the most steps that depth=auto may choose",
        )


def check_threshold(threshold: Any, config: OuroborosConfig) -> float:
    """Returns the threshold of a call; 0 runs every step.

    Raises:
        ConfigError: the model has no halter, or the threshold is no number in 0..1.
    """
    if config.halter == "none":
        raise ConfigError("this model has no halter, so it can't choose a depth", HOW)
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not number or not isfinite(threshold) or not 0 <= threshold <= 1:
        raise ConfigError(
            f"halt_threshold={threshold!r:.60} is not allowed",
            "give a number in 0..1: the lower, the fewer steps; 0 runs them all",
        )
    return float(threshold)
