"""What the fuzz programs begin with: inputs that reach past the first check of what they try."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

import pytest
from safetensors.numpy import load
from tokenizers import Tokenizer

from runtime.bundle.external_data import external_files
from runtime.bundle.manifest import parse_manifest_text
from runtime.cpp.tools.fuzz import HARNESSES, dictionary, fuzz, seeds
from runtime.errors import BundleError


def test_every_program_begins_with_something() -> None:
    names = sorted(path.stem for path in HARNESSES.glob("*.cpp"))
    assert len(names) == 5
    assert [name for name in names if not list(seeds(name))] == []


def test_a_manifest_is_read_and_the_others_are_refused() -> None:
    first, *others = seeds("manifest")
    parse_manifest_text(first)
    assert others
    for text in others:
        with pytest.raises(BundleError):
            parse_manifest_text(text)


def test_tokenizers_are_read() -> None:
    for text in seeds("tokenizer"):
        Tokenizer.from_str(text.decode())


def test_texts_are_of_every_kind() -> None:
    texts = list(seeds("text"))
    assert any(text.isascii() for text in texts)
    assert any("\ufffd" in text.decode("utf-8", "replace") for text in texts)


def test_cases_and_graph_are_read(tmp_path: Path) -> None:
    assert sorted(load(next(seeds("safetensors")))) == ["a", "b"]
    (tmp_path / "model.onnx").write_bytes(next(seeds("graph")))
    assert external_files(tmp_path / "model.onnx") == {"model.data", "body.data"}


@pytest.mark.parametrize("name", ["manifest", "tokenizer"])
def test_words_are_those_of_the_json(name: str) -> None:
    """libFuzzer takes no line of a dictionary but a quoted word, its bytes escaped."""
    words = dictionary(name)
    assert all(re.fullmatch(r'"(\\x[0-9a-f]{2})+"', word) for word in words)
    text = b"".join(seeds(name)).decode()
    for word in words:
        spelt = codecs.decode(word[1:-1], "unicode_escape").encode("latin-1").decode()
        assert spelt in text
        json.loads(spelt)


# What libFuzzer does with its options, as far as the tool relies on it.
PROGRAM = """#!/usr/bin/env python3
import os, sys
options = dict(one[1:].split("=", 1) for one in sys.argv[1:-1])
if "dict" in options and not os.path.getsize(options["dict"]):
    sys.exit("ParseDictionaryFile: file does not exist or is empty")
assert os.listdir(sys.argv[-1])
print("stat::number_of_executed_units: 12345", file=sys.stderr)
if FINDS:
    open(options["artifact_prefix"] + "crash-ab", "wb").write(b"x")
    sys.exit(77)
"""


@pytest.mark.parametrize("finds", [False, True])
@pytest.mark.parametrize("name", ["graph", "manifest"])
def test_what_a_program_did_is_told(tmp_path: Path, name: str, finds: bool) -> None:
    program = tmp_path / "tests" / f"fuzz_{name}"
    program.parent.mkdir()
    program.write_text(PROGRAM.replace("FINDS", str(finds)))
    program.chmod(0o755)
    done = fuzz(name, tmp_path, 1)
    assert (done.runs, done.ended) == (12345, 77 if finds else 0), done.last
    assert done.kept == len(set(seeds(name)))
    assert [path.name for path in done.findings] == [f"{name}-crash-ab"] * finds
