"""Where what was fetched or computed once is kept, outside any project."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """$OURO_CACHE, or ~/.cache/ouroboros."""
    named = os.environ.get("OURO_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "ouroboros"
