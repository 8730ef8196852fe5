"""What a manifest says of a model: the values that the model's own config may hold."""

from __future__ import annotations

import pytest

from ouroboros.model.field_types import CHOICES
from runtime.bundle import specs


@pytest.mark.parametrize(
    ("field", "known"),
    [("pooling", specs.POOLINGS), ("bridge", specs.BRIDGES), ("halter", specs.HALTERS)],
)
def test_what_a_config_may_say_a_manifest_may(field: str, known: tuple[str, ...]) -> None:
    """Neither room may import the other, so that the values stand in both."""
    absent = {"none"} if field == "halter" else set()  # no halter is no entry in the manifest
    assert set(CHOICES[field]) - absent == set(known)
