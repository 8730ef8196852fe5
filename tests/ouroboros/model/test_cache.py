"""What the cache refuses by itself; what models make of it is tested with them."""

from __future__ import annotations

import pytest

from ouroboros.errors import ConfigError
from ouroboros.model.cache import OuroborosCache


def test_a_cache_is_not_cropped() -> None:
    with pytest.raises(ConfigError, match=r"can't be cropped: .*; make a new one"):
        OuroborosCache(2).crop(1)
