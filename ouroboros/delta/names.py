"""Which tensor of the original model a checkpoint's may be a copy of, by its name."""

from __future__ import annotations

import re

from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.names import current_name
from ouroboros.source.agreement import EMBEDDING, HEAD

_LAYER = re.compile(r"(prelude|coda)\.(\d+)\.(.+)")
_LOOPED = re.compile(r"recurrent\.layers\.(\d+)\.(.+)")


def candidates(name: str, config: OuroborosConfig) -> list[str]:
    """Returns names of the source's tensors which a tensor may be copied from, likeliest first.

    They are only where to look: what is a copy is told by comparing bits.

    Args:
        name: of a tensor of the checkpoint.
        config: of the checkpoint.
    """
    name = current_name(name)
    if name == "lm_head.weight":
        return [HEAD, EMBEDDING]  # the latter where a tied head was untied and kept
    if found := _LAYER.fullmatch(name):
        first = 0 if found[1] == "prelude" else config.original_layers - config.coda
        return [f"model.layers.{first + int(found[2])}.{found[3]}"]
    if found := _LOOPED.fullmatch(name):
        return [f"model.layers.{config.recurrent + int(found[1])}.{found[2]}"]
    return [f"model.{name}"]
