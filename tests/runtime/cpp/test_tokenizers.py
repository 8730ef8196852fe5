"""Tokenizers, changed: C++ takes what Python takes, refuses the rest, and gives the same tokens."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import OuroError
from runtime.text.codec import load_tokenizer
from tests.support.cpp import built
from tests.support.tokenizer_changes import TEXTS, changed, changes
from tests.support.tokenizer_kinds import KINDS, make_codec, sentence_piece

IDS = [[], list(range(20)), [70, 71, 271, 278, 279, 9000]]
LACKS = "this engine does not read the bundle's tokenizer"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def answer_of(make: Callable[[], Any]) -> Any:
    """What a function gives, or the code of its error."""
    try:
        return make()
    except OuroError as error:
        return error.code


def use(file: Path) -> Any:
    """What Python makes of the texts and the tokens."""
    core = answer_of(lambda: load_tokenizer(file))
    if isinstance(core, int):
        return core
    codec = make_codec(core)
    made = [answer_of(partial(codec.encode, text)) for text in TEXTS]
    for ids in IDS:
        made += [
            answer_of(partial(codec.decode, ids)),
            answer_of(partial(codec.decode, ids, skip_special_tokens=False)),
            [
                codec.skips(token) if codec.special(token) is None else codec.special(token)
                for token in ids
            ],
        ]
    return made


def read(answer: Any) -> Any:
    """The same of what C++ says; None stands for what it lacks a part for."""
    if isinstance(answer, list):
        return answer[0]
    made: list[Any] = []
    for one in answer["texts"]:
        made.append(one["ids"] if isinstance(one, dict) else None if LACKS in one[1] else one[0])
    for one in answer["ids"]:
        if isinstance(one, dict):
            made += [one["plain"], one["whole"], one["special"]]
        else:
            made += [None if LACKS in one[1] else one[0]] * 2 + [None]
    return made


def variants() -> Iterator[dict[str, Any]]:
    """Tokenizers of every kind, and with tokens added in every way, twice too."""
    draw = random.Random(0)
    base = json.loads(sentence_piece("first")().to_str())
    whole = [json.loads(build().to_str()) for build in KINDS.values()]
    yield from whole
    yield from (changed(base, change) for change in changes())
    whole += [base, json.loads(sentence_piece("llama")().to_str())]
    normalizers = [
        *(None, {"type": "NFC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "▁"}),
        {"type": "Replace", "pattern": {"String": "the"}, "content": "THE"},
    ]
    for _ in range(400):
        made = dict(draw.choice(whole))
        added = list(made["added_tokens"])
        for content in draw.choices(["[W]", "the", " ", "a", "<s>", "\u0301", "e\u0301", ""], k=3):
            flags = {name: draw.random() < 0.4 for name in FLAGS}
            added.insert(draw.randrange(len(added) + 1), {"id": 0, "content": content, **flags})
        made |= {"added_tokens": added, "normalizer": draw.choice(normalizers)}
        yield made


@pytest.mark.timeout(240)
def test_tokenizers_are_read_alike(tmp_path: Path) -> None:
    expected, asked = [], []
    for number, made in enumerate(variants()):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(made))
        expected.append(use(file))
        question = tmp_path / f"{number}.asked"
        question.write_text(json.dumps({"tokenizer": json.dumps(made), "texts": TEXTS, "ids": IDS}))
        asked.append(f"tokens {question}")
    done = subprocess.run(
        [built("judge_bundles")], input="\n".join(asked), capture_output=True, text=True, check=True
    )
    found = [read(json.loads(line)) for line in done.stdout.splitlines()]
    wrong = [
        f"{made}: {one}, in Python {other}"
        for made, one, other in zip(variants(), found, expected, strict=True)
        if not same(one, other)
    ]
    assert wrong == []
    assert found.count(7) > 100


def same(one: Any, other: Any) -> bool:
    """Whether C++ says what Python says, or that it lacks a part."""
    if isinstance(one, int) or isinstance(other, int):
        return bool(one == other)
    pairs = zip(one, other, strict=True)
    return all(mine is None or (type(mine), mine) == (type(its), its) for mine, its in pairs)
