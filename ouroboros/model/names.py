"""Names that weights had before: checkpoints, deltas and training states with them still load."""

from __future__ import annotations

import re

RENAMED = {r"^recurrent\.layer\.": "recurrent.layers.0."}
"""Patterns of former names, in the form of transformers' `key_mapping`, and what they are now.

Once the looped part was always a single layer.
"""


def current_name(name: str) -> str:
    """Returns what a weight of the model is called now.

    Args:
        name: of a tensor of a checkpoint, of whatever version.
    """
    for pattern, now in RENAMED.items():
        name = re.sub(pattern, now, name)
    return name
