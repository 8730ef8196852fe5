"""Chat templates of a tokenizer: each named one becomes a file, so its name must be a plain one."""

from __future__ import annotations

import re
from typing import Any

from ouroboros.errors import CheckpointError


def is_template(name: Any, text: Any) -> bool:
    """Says whether this is a template under a name of letters, digits, underscores and hyphens."""
    plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None
    return plain and isinstance(text, str)


def check_templates(tokenizer: Any, source: str) -> None:
    """Refuses templates that could not be written, or would be written elsewhere.

    Args:
        tokenizer: as transformers loads it; its `chat_template` is a text, or texts by name.
        source: what the message calls the model.

    Raises:
        CheckpointError: one is no text, or its name no plain one.
    """
    found = getattr(tokenizer, "chat_template", None)
    named = found if isinstance(found, dict) else {} if found is None else {"default": found}
    for name, text in named.items():
        if not is_template(name, text):
            raise CheckpointError(
                f"{source}: its chat template {name!r:.80} is no text, or its name is not of "
                "letters, digits, _ and - alone",
                "correct tokenizer_config.json",
            )
