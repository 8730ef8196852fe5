"""A .gguf file: its header is not believed, its tokenizer is the one its metadata describe."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ouroboros.errors import ConfigError, SourceError
from ouroboros.source.gguf_header import read_header
from ouroboros.source.gguf_pre import RULES
from ouroboros.source.gguf_tokenizer import build_tokenizer
from ouroboros.source.locate import load_source, locate
from tests.support.gguf import write_gguf

BYTES = [f"<0x{number:02X}>" for number in range(256)]


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int = 0, at: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, at)


def gguf_bytes(
    entries: list[bytes], tensors: list[bytes], *, version: int = 3, counts: Any = None
) -> bytes:
    held = counts or (len(tensors), len(entries))
    return struct.pack("<4sIQQ", b"GGUF", version, *held) + b"".join([*entries, *tensors])


ARCH = entry("general.architecture", 8, text("llama"))
HUGE = 1 << 63
LIES = {
    "tensor count": gguf_bytes([ARCH], [], counts=(HUGE, 1)),
    "key count": gguf_bytes([ARCH], [], counts=(0, (1 << 64) - 1)),
    "string": gguf_bytes([text("a")[:4] + struct.pack("<Q", HUGE)], []),
    "array": gguf_bytes([entry("a", 9, struct.pack("<IQ", 4, 1 << 62))], []),
    "string array": gguf_bytes([entry("a", 9, struct.pack("<IQ", 8, (1 << 61) + 1))], []),
    "nested": gguf_bytes([entry("a", 9, struct.pack("<IQ", 9, 1) * 10000)], []),
    "value type": gguf_bytes([entry("a", 99, b"")], []),
    "dims": gguf_bytes([ARCH], [text("t") + struct.pack("<I", (1 << 32) - 1)]),
    "product": gguf_bytes([ARCH], [tensor("t", [1 << 32, 1 << 32, 2])]),
    "zero": gguf_bytes([ARCH], [tensor("t", [0])]),
    "type": gguf_bytes([ARCH], [tensor("t", [4], kind=777)]),
    "offset": gguf_bytes([ARCH], [tensor("t", [4], at=1 << 62)]),
    "overflowing offset": gguf_bytes([ARCH], [tensor("t", [4], at=(1 << 64) - 32)]),
    "overlap": gguf_bytes([ARCH], [tensor("t", [64]), tensor("u", [64])]) + b"\0" * 999,
    "twice": gguf_bytes([ARCH, ARCH], []),
    "tensor twice": gguf_bytes([ARCH], [tensor("t", [4]), tensor("t", [4], at=32)]) + b"\0" * 99,
    "alignment 0": gguf_bytes([entry("general.alignment", 4, struct.pack("<I", 0))], []),
    "alignment 33": gguf_bytes([entry("general.alignment", 4, struct.pack("<I", 33))], []),
    "alignment": gguf_bytes([entry("general.alignment", 8, text("32"))], []),
    "no text": gguf_bytes([entry("a", 8, text(b"\xff\xfe"))], []),
    "version": gguf_bytes([ARCH], [], version=77),
}


@pytest.mark.parametrize("lie", LIES)
def test_header_that_lies_is_refused_in_one_line(tmp_path: Path, lie: str) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(LIES[lie])
    with pytest.raises(SourceError, match="truncated or not a GGUF file") as caught:
        locate(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gguf_bytes([], [], version=1), "GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (gguf_bytes([ARCH, entry("split.count", 2, b"\3\0")], []), r"llama-gguf-split --merge"),
        (gguf_bytes([entry("general.type", 8, text("adapter"))], []), "'adapter', no whole model"),
        (gguf_bytes([entry("general.architecture", 8, text("clip"))], []), "'clip' can't"),
    ],
)
def test_other_kinds_of_gguf_are_refused_by_name(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "tiny.GGUF"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        locate(str(file))


def test_vocabulary_alone_and_a_directory_of_gguf_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf_bytes([ARCH], []))
    with pytest.raises(SourceError, match="holds no weights"):
        locate(str(tmp_path / "x.gguf"))
    with pytest.raises(SourceError, match=r"give the file: .*x\.gguf"):
        locate(str(tmp_path))


def test_mutated_headers_raise_nothing_but_our_errors(tiny_original: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_original, file)
    whole = file.read_bytes()
    chance = random.Random(0)
    said = []
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content) if chance.random() < 0.1 else 1200)] = (
                chance.choice([0, 1, 127, 255, chance.randrange(256)])
            )
        file.write_bytes(content)
        try:
            locate(str(file))
        except (SourceError, ConfigError) as error:
            said.append(str(error))
    assert said
    assert not any("\n" in line for line in said)


def write_vocabulary(path: Path, model: str, tokens: list[str], **more: Any) -> Path:
    import gguf

    file = path / "v.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(more.pop("types"))
    if "scores" in more:
        writer.add_token_scores(more.pop("scores"))
    if "merges" in more:
        writer.add_token_merges(more.pop("merges"))
    for key, value in more.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}[type(value)]
        add("tokenizer." + key.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def byte_level(path: Path, **more: Any) -> Any:
    tokens = ["<s>", "</s>", "<tool>", *map(chr, range(33, 127)), "Ġ", "Ċ", "Ã", "©", "ĊĊ", "12"]
    types = [3, 3, 4, *[1] * (len(tokens) - 3)]
    merges = ["Ċ Ċ", "1 2"]
    more = {"merges": merges, "ggml__bos_token_id": 0, **more}
    return build_tokenizer(read_header(write_vocabulary(path, "gpt2", tokens, types=types, **more)))


@pytest.mark.parametrize(
    ("pre", "given", "right"),
    [
        ("smollm", "a\n\n12", ["a", "ĊĊ", "1", "2"]),
        ("gpt-2", "a\n\n12", ["a", "Ċ", "Ċ", "12"]),
        ("starcoder", "12\n\n1", ["1", "2", "ĊĊ", "1"]),
        ("deepseek-llm", "\n\n12", ["Ċ", "Ċ", "1", "2"]),
        ("qwen2", "e\u0301 12", ["Ã", "©", "Ġ", "1", "2"]),
        ("llama-bpe", "12\n\n", ["<s>", "12", "ĊĊ"]),
    ],
)
def test_named_pre_tokenizers_cut_as_llama_cpp_does(
    tmp_path: Path, pre: str, given: str, right: list[str]
) -> None:
    byte_level(tmp_path, ggml__pre=pre).save_pretrained(tmp_path)
    core = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert core.encode(given).tokens == right
    assert AutoTokenizer.from_pretrained(tmp_path)(given)["input_ids"] == core.encode(given).ids


def test_every_rule_loses_no_text(tmp_path: Path) -> None:
    for name in RULES:
        core = byte_level(tmp_path, ggml__pre=name, ggml__add_bos_token=False)
        given = "Don't 12 x=1;\n\n <tool> 3,14 é"
        assert core.decode(core(given)["input_ids"]) == given, name


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"ggml__pre": "mambo"}, ConfigError, "tokenizer.ggml.pre='mambo' is unknown"),
        ({}, ConfigError, r"tokenizer\.ggml\.pre is missing"),
        ({"ggml__pre": "gpt-2", "ggml__add_sep_token": True}, ConfigError, "add_sep_token"),
        ({"ggml__pre": "gpt-2", "ggml__eos_token_id": 1 << 31}, SourceError, "outside of"),
        ({"ggml__pre": "gpt-2", "merges": ["a zz"]}, SourceError, "names a token that is not"),
        ({"ggml__pre": "gpt-2", "ggml__add_eos_token": True}, SourceError, "does not name"),
    ],
)
def test_tokenizers_that_would_be_wrong_are_refused(
    tmp_path: Path, more: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        byte_level(tmp_path, **more)


def test_a_token_as_long_as_a_book_is_refused(tmp_path: Path) -> None:
    """Every way to cut it would be looked at."""
    tokens = ["<unk>", "<s>", "</s>", "x" * 1_000_000]
    file = write_vocabulary(
        tmp_path, "llama", tokens, types=[2, 3, 3, 1], scores=[0.0, 0.0, 0.0, -1.0]
    )
    with pytest.raises(SourceError, match="a token is 1,000,000 characters long, 4,096 are"):
        build_tokenizer(read_header(file))


def test_kinds_of_tokens_templates_and_the_space_before_a_text(tmp_path: Path) -> None:
    more = {"chat_template": "A", "chat_template__tool_use": "B", "ggml__add_space_prefix": True}
    tokenizer = byte_level(tmp_path, ggml__pre="gpt-2", **more)
    assert tokenizer.tokenize("a<tool>b</s>") == ["Ġ", "a", "<tool>", "Ġ", "b", "</s>"]
    assert tokenizer.decode([0, 2, 1], skip_special_tokens=True) == "<tool>"
    assert tokenizer.chat_template == {"default": "A", "tool_use": "B"}


@pytest.mark.parametrize(
    ("space", "right"), [(True, ["<s>", "▁a", "▁", "b"]), (False, ["<s>", "a", "▁", "b"])]
)
def test_sentencepiece_honours_the_space_prefix(
    tmp_path: Path, space: bool, right: list[str]
) -> None:
    tokens = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a"]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1, 1]
    scores = [0.0] * 259 + [-9.0, -9.0, -9.0, -1.0]
    file = write_vocabulary(
        tmp_path, "llama", tokens, types=types, scores=scores, ggml__add_space_prefix=space
    )
    build_tokenizer(read_header(file)).save_pretrained(tmp_path)
    core = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert core.encode("a b").tokens == right
    assert core.decode(core.encode("a 😀b").ids) == "a 😀b"
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("a 😀b")["input_ids"] == core.encode("a 😀b").ids


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("llama__attention__sliding_window", 16, "sliding_window=16 is active"),
        ("llama__attention__value_length", 8, "value_length is 8 and the heads are 16"),
        ("llama__logit_scale", 4, "logit_scale=4 is not read"),
        ("llama__expert_count", 8, "expert_count=8 is not read"),
        ("llama__rope__scale_linear", 4, "RoPE scaling"),
    ],
)
def test_what_the_reader_would_drop_is_refused(
    tiny_original: Path, tmp_path: Path, key: str, value: int, words: str
) -> None:
    write_gguf(tiny_original, tmp_path / "x.gguf")
    raw = (tmp_path / "x.gguf").read_bytes()
    first = raw.index(b"general.architecture") - 8
    count = struct.unpack_from("<Q", raw, 16)[0] + 1
    more = entry(key.replace("__", "."), 4, struct.pack("<I", value))
    content = raw[:16] + struct.pack("<Q", count) + raw[24:first] + more + raw[first:]
    (tmp_path / "x.gguf").write_bytes(content + b"\0" * 64)
    with pytest.raises(ConfigError, match=words):
        locate(str(tmp_path / "x.gguf"))


def test_upper_case_suffix_and_a_false_block_count(tiny_original: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.GGUF"
    write_gguf(tiny_original, file)
    assert load_source(str(file)).tokenizer("Hello")["input_ids"] == [258, 78, 78, 81]
    raw = bytearray(file.read_bytes())
    at = raw.index(b"llama.block_count") + len("llama.block_count") + 4
    for count, words in (
        (5, "no place for"),
        (7, "only 56 tensors"),
        (0, "above 0"),
        (1 << 30, "only"),
    ):
        raw[at : at + 4] = struct.pack("<I", count)
        file.write_bytes(raw)
        with pytest.raises((SourceError, ConfigError), match=words):
            locate(str(file))
