"""Changes of a tokenizer.json, which every reader takes or refuses alike."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.tokenizer_kinds import byte_level, sentence_piece

Keys = tuple[str | int, ...]
Change = tuple[Keys, Any]  # where, and what stands there then; `...` where nothing does

BASES: dict[str, Callable[[], Any]] = {
    "bytes": byte_level(),
    "words": sentence_piece("llama"),
}
TEXTS = ["", "the cat", " the[W]x [W]  a</s> b", "the  <the>12's"]
IDS = [[], [0, 1, 4, 70, 271, 278, 9000]]

_ADDED = {"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
          "normalized": False, "special": True}  # fmt: skip
_FLAGS = ("single_word", "lstrip", "rstrip", "special")
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_MARK = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
_REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
_STRIP = {"type": "Strip", "content": "t", "start": 1, "stop": 0}
_TWICE = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
_TEMPLATE = {"type": "TemplateProcessing", "single": _TWICE, "pair": [], "special_tokens": {}}
_BERT = {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}

# Parts that no engine uses: nothing in them changes anything.
UNUSED: dict[str, list[Any]] = {
    "post_processor": [
        *(..., {}, 3, "x", [], {"type": "Foo"}, {"type": "ByteLevel"}, _BYTES, _BERT, _TEMPLATE),
        {"type": "RobertaProcessing", "sep": ["</s>", 2]},
        {**_BERT, "sep": ["</s>", -2]},
        {**_TEMPLATE, "single": []},
        {**_TEMPLATE, "single": "$A"},
        {"type": "Sequence", "processors": [_BYTES, _TEMPLATE]},
        {"type": "Sequence"},
    ],
    "truncation": [
        *(..., {}, 3, {"max_length": "a"}),
        {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
    ],
    "padding": [
        *(..., {}, 3),
        {
            **{"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": None},
            **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
        },
    ],
}
# Dropout is for training; the share has a range all the same.
DROPOUTS: list[Any] = [..., None, 0, 0.0, 0.3, 1, 1.0, 1.5, -0.1, 1e39, "a", True, []]
PARTS: dict[str, list[Any]] = {
    "version": [..., None, "2.0", 1.0],
    "more": [1],
    "added_tokens": [..., None, [], {}, 3],
    "normalizer": [
        *(..., 1, {}, {"type": "Foo"}, {"type": 3}, {"type": "NFC"}, {"type": "nfc"}),
        *({"type": "Prepend"}, {"type": "Prepend", "prepend": 3}, _REPLACE),
        *({**_REPLACE, "pattern": one} for one in ("a", {}, {"X": "a"}, {"String": 3})),
        {**_REPLACE, "pattern": {"String": "a", "Regex": "a"}},
        *({"type": "Strip"}, {"type": "BertNormalizer"}, {"type": "Sequence"}),
        {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Foo"}]},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}, _REPLACE]},
    ],
    "pre_tokenizer": [
        *(..., 1, {}, {"type": "Foo"}, {"type": "ByteLevel"}, _BYTES, {**_BYTES, "x": 1}),
        *({**_BYTES, name: 1} for name in ("add_prefix_space", "trim_offsets", "use_regex")),
        *(_MARK, {**_MARK, "add_prefix_space": 1}, {**_MARK, "add_prefix_space": False}),
        *({**_MARK, "prepend_scheme": "x"}, {**_MARK, "split": 1}, {**_MARK, "replacement": "ab"}),
        *({"type": "Digits"}, {"type": "Split"}, {"type": "Punctuation", "behavior": "Foo"}),
        *({"type": "CharDelimiterSplit", "delimiter": "xy"}, {"type": "Sequence"}),
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": 1}, _BYTES]},
        {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
        },
    ],
    "decoder": [
        *(..., 1, {}, {"type": "Foo"}, {"type": "ByteLevel"}, _BYTES, {**_BYTES, "use_regex": 3}),
        *({"type": "Fuse"}, {"type": "ByteFallback", "x": 1}, _REPLACE, {**_REPLACE, "content": 3}),
        *({**_REPLACE, "pattern": "a"}, {**_REPLACE, "pattern": {}}),
        *(_MARK, {**_MARK, "prepend_scheme": "x"}, {**_MARK, "split": 3}),
        *({**_MARK, "add_prefix_space": False}, {**_MARK, "add_prefix_space": 3}),
        *({"type": "WordPiece"}, {"type": "BPEDecoder"}, {"type": "CTC"}, {"type": "Sequence"}),
        *(_STRIP, {**_STRIP, "content": "ab"}, {**_STRIP, "start": 1.0}, {**_STRIP, "stop": 1}),
        {**_STRIP, "start": 3, "stop": 3},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Foo"}]},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {**_STRIP, "stop": 1}]},
    ],
}
MODEL: dict[str, list[Any]] = {
    "type": [..., "Foo", "bpe", "WordPiece", 3],
    "unk_token": [..., None, "zz", 1],
    "fuse_unk": [..., True, 1],
    "continuing_subword_prefix": ["", "zzz", 3],
    "merges": [..., [], ["t h e"], [["t", "zz"]], ["a t", ["a", "t"]], "a t"],
    "vocab": [..., [], {}],
}


def changes() -> Iterator[Change]:
    """Every change."""
    for part, values in {**UNUSED, **PARTS}.items():
        yield from (((part,), value) for value in values)
    yield from ((("model", "dropout"), value) for value in DROPOUTS)
    for name, values in MODEL.items():
        yield from ((("model", name), value) for value in values)
    wrong: list[Any] = [..., None, [], "x"]
    for name in _ADDED:
        yield from ((("added_tokens", 0, name), value) for value in wrong)
    for count in range(len(_FLAGS) + 1):
        for chosen in itertools.combinations(_FLAGS, count):
            flags = {name: name in chosen for name in _FLAGS}
            for content in ("[W]", "the"):
                token = {**_ADDED, "id": 400, "content": content, **flags}
                yield ("added_tokens",), [token, {**_ADDED, "content": "</s>"}]


def changed(data: dict[str, Any], change: Change) -> dict[str, Any]:
    """A copy with a change."""
    keys, value = change
    made = copy.deepcopy(data)
    inner: Any = made
    for key in keys[:-1]:
        inner = inner[key]
    if value is ...:
        inner.pop(keys[-1], None)
    else:
        inner[keys[-1]] = value
    return made
