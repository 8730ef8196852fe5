"""The matrices of a model that may be stored as integers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ouroboros.model.modulation import Controller


def matrices_to_round(block: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a part whose matrices become integers, by name under `prefix`.

    Not the Controller's, which stay floats, nor the LM head, which goes with the embedding.
    """
    floats = {
        id(module)
        for part in block.modules()
        if isinstance(part, Controller)
        for module in part.modules()
    }
    for name, module in block.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear) and id(module) not in floats and name != "lm_head":
            yield name, module
