from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers

from runtime import BundleError, Engine, EngineError
from runtime.decode.generation import Row
from runtime.decode.options import Options
from runtime.decode.request import Request
from runtime.text.codec import Codec, StopScanner, TextStream, load_tokenizer
from tests.support.tokenizer_changes import UNUSED, Change, changed
from tests.support.tokenizer_kinds import KINDS, byte_level, make_codec, sentence_piece


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


def test_a_tokenizer_that_breaks_off_is_named(tmp_path: Path) -> None:
    """Parts of tokenizers panic, which pyo3 hands on as no Exception."""
    core = byte_level()()
    core.normalizer = normalizers.Replace("", "x")
    with pytest.raises(BundleError, match=r"can't turn the text into tokens: .*; export the bund"):
        make_codec(core).encode("some text")
    made = json.loads(core.to_str())
    made["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(made))
    spec = SimpleNamespace(file=file.name, prefix_token_ids=())
    manifest = SimpleNamespace(tokenizer=spec)
    bundle: Any = SimpleNamespace(manifest=manifest, file=lambda name: tmp_path / name)
    with pytest.raises(BundleError, match="is not a tokenizer: Precompiled"):
        Codec(bundle)


def load(folder: Path, change: Change) -> Codec:
    """The codec of a tokenizer.json that was changed."""
    made = json.loads(sentence_piece("llama")().to_str())
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(changed(made, change)))
    return make_codec(load_tokenizer(file))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_dropout_drops_no_merge(tmp_path: Path, share: float) -> None:
    codec = load(tmp_path, (("model", "dropout"), share))
    plain = load(tmp_path, (("padding",), None))
    assert {tuple(codec.encode("the cat sat")) for _ in range(50)} == {
        tuple(plain.encode("the cat sat"))
    }


@pytest.mark.parametrize(
    ("part", "value"), [(part, value) for part, values in UNUSED.items() for value in values]
)
def test_parts_that_no_engine_uses_change_nothing(tmp_path: Path, part: str, value: Any) -> None:
    codec = load(tmp_path, ((part,), value))
    assert codec.encode("the cat") == load(tmp_path, (("padding",), None)).encode("the cat")


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


def expected_text(codec: Codec, prompt: list[int], tokens: list[int]) -> str:
    """The definition: the whole, without what it and the prompt begin with alike."""
    before, whole = codec.decode(prompt), codec.decode([*prompt, *tokens])
    same = 0
    while same < min(len(before), len(whole)) and before[same] == whole[same]:
        same += 1
    return whole[same:]


def random_run(generator: np.random.Generator, size: int, length: int) -> list[int]:
    """Tokens in stretches of one kind, so that characters get whole and runs get long."""
    tokens: list[int] = []
    while len(tokens) < length:
        low = int(generator.integers(0, size))
        high = min(size, low + int(generator.integers(1, 40)))
        tokens += generator.integers(low, high, int(generator.integers(1, 9))).tolist()
    return tokens[:length]


@pytest.mark.parametrize("kind", KINDS)
def test_stream_equals_the_whole_for_every_tokenizer(kind: str) -> None:
    codec = make_codec(KINDS[kind]())
    size = codec._tokenizer.get_vocab_size() + 2  # a model may have more rows
    generator = np.random.default_rng(0)
    for number in range(150):
        length = 300 if number % 50 == 0 else int(generator.integers(0, 40))
        prompt = random_run(generator, size, int(generator.integers(0, 30)))
        tokens = random_run(generator, size, length)
        if number % 3 == 0:  # characters of several bytes, cut at random
            find = codec._tokenizer.token_to_id
            text = [find(f"<0x{byte:02X}>") for byte in ("😀é語 a😀" * 3).encode()]
            if None in text:
                text = codec._tokenizer.encode("😀é語 a😀" * 3, add_special_tokens=False).ids
            tokens = (text + tokens)[int(generator.integers(0, 9)) :]
        text_stream = TextStream(codec, prompt)
        shown = ""
        for token in tokens:
            shown += text_stream.push(token)
        assert shown + text_stream.flush() == expected_text(codec, prompt, tokens)


@pytest.mark.parametrize("kind", ["byte-level", "llama, words", "wordpiece", "none", "llama"])
def test_stream_does_not_wait_and_keeps_a_short_window(kind: str) -> None:
    codec = make_codec(KINDS[kind]())
    words = [t for t in range(3, 9) if codec.decode([t, t]).strip()]
    text_stream, shown = TextStream(codec, words), ""
    for token in words * 60:
        shown += text_stream.push(token)
        assert len(text_stream._window) <= 32
    assert text_stream.flush() == ""
    assert shown == expected_text(codec, words, words * 60)


def test_long_runs_of_invalid_bytes_keep_a_short_window() -> None:
    codec = make_codec(KINDS["byte-level"]())
    token = codec._tokenizer.token_to_id("ĺ")
    text_stream = TextStream(codec)
    for _ in range(400):
        text_stream.push(token)
        assert len(text_stream._window) <= 32


def test_two_emoji_in_byte_tokens() -> None:
    codec = make_codec(KINDS["bytes"]())
    tokens = [codec._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "😀😀".encode()]

    class OnlyDecodes:
        def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
            return codec.decode(ids, skip_special_tokens)

    for one in (codec, OnlyDecodes()):
        text_stream = TextStream(one)
        assert "".join(map(text_stream.push, tokens)) + text_stream.flush() == "😀😀"


def test_a_stream_goes_on_from_its_prompt() -> None:
    codec = make_codec(KINDS["llama, words"]())
    the, cat, sat = (codec._tokenizer.token_to_id(f"▁{word}") for word in ("the", "cat", "sat"))
    for specials in ([], [0], [2] * 20):
        text_stream = TextStream(codec, [the, *specials])
        assert [text_stream.push(cat), text_stream.push(sat)] == [" cat", " sat"]


@pytest.mark.parametrize("scheme", ["llama", "first", "always", "never"])
def test_a_continuation_gets_no_mark_of_a_beginning(scheme: str) -> None:
    codec = make_codec(sentence_piece(scheme)())
    for before, text in (
        ("the", " cat"),
        ("the c", "at"),
        ("the", "\ncat"),
        ("the ", "cat"),
        ("the</s>", " the cat"),
        ("the", "</s>cat"),
        ("😀", "😀 the"),
    ):
        first = codec.encode(before)
        ids = [*first, *codec.encode_after(first, text)]
        said = codec.decode(ids, skip_special_tokens=False)
        whole = codec.encode(before + text)
        assert ids == whole or said == codec.decode(first, skip_special_tokens=False) + text


def test_a_continuation_with_a_prefix_space() -> None:
    codec = make_codec(byte_level(prefix=True)())
    first = codec.encode("the")
    assert codec.decode([*first, *codec.encode_after(first, "n")]) == " then"


def test_special_token_is_what_decoding_leaves_out() -> None:
    codec = make_codec(KINDS["llama, marked special"]())
    plain = codec.encode("</s>", first=False)[0]
    shown = codec._tokenizer.get_vocab_size() - 1
    assert codec._tokenizer.get_added_tokens_decoder()[shown].content == "<mask>"
    assert (codec.special(plain), codec.skips(plain)) == ("</s>", True)
    # From tokenizers 0.23 on it is shown; before, the vocabulary had it as it was given.
    left_out = codec._tokenizer.id_to_token(shown) == "<mask>"
    assert (codec.special(shown), codec.skips(shown)) == ("<mask>" if left_out else None, left_out)
    assert codec.decode([plain, shown]) == ("" if left_out else "<mask>")


def test_stops_see_special_tokens() -> None:
    def run(stops: list[str], said: list[str]) -> tuple[str, bool]:
        scanner, shown = StopScanner(stops), ""
        for one in said:
            special = one if one.startswith("<") else None
            shown += scanner.push("" if special else one, "", special)
            if scanner.found:
                return shown, True
        return shown + scanner.flush(), False

    assert run(["<|im_end|>"], ["Hi", "<|im_end|>", "x"]) == ("Hi", True)
    assert run(["\n<|im_end|>"], ["Hi", "\n", "<|im_end|>", "x"]) == ("Hi", True)
    assert run(["\n<|im_end|>\n"], ["Hi\n", "<|im_end|>", "\nx"]) == ("Hi", True)
    assert run(["<a>b"], ["x", "<a>", "<a>", "b"]) == ("x", True)
    assert run(["<a>b"], ["x", "<a>", "c", "<a>"]) == ("xc", False)
    assert run(["<a><b>"], ["x", "<a>", "<b>"]) == ("x", True)
    assert run(["xy"], ["x", "<a>", "y"]) == ("xy", False)


@pytest.mark.parametrize("kind", ["byte-level", "llama"])
def test_stops_equal_a_search_in_the_whole(kind: str) -> None:
    """Rows of random tokens: the text before the first stop string, as soon as it is there."""
    codec = make_codec(KINDS[kind]())
    names = ["a", "b", ".", "<|im_end|>", "<s>"]
    pool = [codec._tokenizer.token_to_id(name) for name in names]
    generator = np.random.default_rng(1)
    for _ in range(300):
        tokens = generator.choice(pool, 20).tolist()
        stop = "".join(generator.choice(names, int(generator.integers(1, 4))))
        options = Options(max_new_tokens=20, temperature=0.0, stop=(stop,))
        row = Row(codec, Request((pool[0],), 1, options), [])
        for token in tokens:
            row.take(np.eye(len(pool) + 400, dtype=np.float32)[token])
            if row.finish_reason:
                break
        whole = "".join(names[pool.index(token)] for token in tokens)
        taken = whole if stop not in whole else whole[: whole.index(stop)]
        assert row.finish_reason == ("stop" if stop in whole else "length")
        assert row.text == taken.replace("<|im_end|>", "").replace("<s>", "")
        assert row.spoken == "".join(names[pool.index(token)] for token in row.tokens)
        assert (stop in row.spoken) == (stop in whole)
