"""The calibration text that is shipped: several kinds, in turn, and where they are from."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from ouroboros.conversion.convert import CALIBRATION_TOKENS, FIT_WINDOWS

CHARACTERS_A_TOKEN = 4.2  # SmolLM2's tokenizer, over the whole text
KINDS = {
    "facts": r"Climate: .* Terrain: |\bexports\b",
    "code": r"(?m)^ +return \w|^ +def \w|^#define |^static ",
    "novel": r"\b(Queequeg|Ishmael|Ahab|whale|Nantucket)",
    "technical": r"\bSQLite\b|\bgraph\b",
    "speech": r"\b(America|Congress|Americans)\b",
}


def read(name: str) -> str:
    return resources.files("ouroboros").joinpath(name).read_text("utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_what_is_fitted_on_holds_every_kind(kind: str) -> None:
    text = read("calibration.txt")
    assert 150_000 < len(text) < 320_000
    fitted = text[: int(FIT_WINDOWS * CALIBRATION_TOKENS * CHARACTERS_A_TOKEN)]
    assert len(fitted) == int(FIT_WINDOWS * CALIBRATION_TOKENS * CHARACTERS_A_TOKEN)
    part = len(fitted) // 3
    for start in range(0, 3 * part, part):
        assert re.search(KINDS[kind], fitted[start : start + part]), (kind, start)


def test_sources_are_named() -> None:
    sources = read("calibration_sources.txt")
    for name in ("World Factbook", "State of the Union", "Moby-Dick", "SQLite"):
        assert name in sources
    assert sources.count("public domain") >= 4


def test_no_licence_header_of_a_book_site_is_left() -> None:
    assert not re.search(r"(?i)gutenberg", read("calibration.txt"))
