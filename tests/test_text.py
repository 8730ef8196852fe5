from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime import Engine, EngineError
from runtime.text import StopScanner, TextStream


class Bytes:
    """One token a byte, decoded as byte-level tokenizers do."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def stream(data: bytes) -> tuple[list[str], str]:
    text: Any = TextStream(Bytes())  # type: ignore[arg-type]
    pieces = [text.push(byte) for byte in data]
    return pieces, text.flush()


@pytest.mark.parametrize(("text", "where"), [("\udcff", 0), ("ab\ud83d", 2), ("a\udc00b", 1)])
def test_encode_refuses_half_a_surrogate_pair(engine: Engine, text: str, where: int) -> None:
    with pytest.raises(EngineError, match=f"at character {where}, which is no Unicode") as caught:
        engine.codec.encode(text)
    str(caught.value).encode("ascii")  # can be printed anywhere
    assert engine.codec.encode("\U0001f600")


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "日本語" * 20, "👩‍👩‍👧 🏳️‍🌈", "\ufffd!", "a" * 99]
)
def test_stream_never_breaks_a_character(text: str) -> None:
    pieces, rest = stream(text.encode())
    assert "".join(pieces) == text
    assert rest == ""
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_stream_of_broken_bytes_equals_the_whole() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        data = generator.choice([0x41, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0xFF], 40)
        raw = bytes(data.astype(np.uint8).tolist())
        pieces, rest = stream(raw)
        assert "".join(pieces) + rest == raw.decode("utf-8", errors="replace")


def test_stream_cut_in_a_character_ends_with_the_mark() -> None:
    pieces, rest = stream("a€".encode()[:-1])
    assert "".join(pieces) == "a"
    assert rest == "\ufffd"


def scan(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    shown = ""
    for piece in pieces:
        shown += scanner.push(piece)
        if scanner.found:
            return shown, True
    return shown + scanner.flush(), False


def test_stop_string_split_over_pieces_is_never_shown() -> None:
    assert scan(["END"], list("abENxENDyy")) == ("abENx", True)
    assert scan(["END"], ["a", "EN", "D"]) == ("a", True)
    assert scan(["END"], ["a", "EN"]) == ("aEN", False)
    assert scan(["aab"], list("aaab")) == ("a", True)
    assert scan(["\n\n", "User:"], ["Hi\nUs", "er: x"]) == ("Hi\n", True)
    assert scan([], ["a", "b"]) == ("ab", False)


def test_stop_earliest_of_several_wins() -> None:
    assert scan(["world", "lo"], ["hello world"]) == ("hel", True)


def test_stop_scanner_equals_find_on_random_text() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(generator.choice(list("ab"), 30))
        stops = ["".join(generator.choice(list("ab"), n)) for n in (3, 5)]
        pieces, rest = [], text
        while rest:
            cut = int(generator.integers(1, 5))
            pieces.append(rest[:cut])
            rest = rest[cut:]
        shown, found = scan(stops, pieces)
        assert found == any(stop in text for stop in stops)
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
