"""The vectors that every language runs: they are what the code makes, and the code finds them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from runtime.bundle.manifest import SamplingSpec, parse_manifest
from runtime.decode.generation import Row
from runtime.decode.kv_cache import capacity_for
from runtime.decode.options import Options, check_options
from runtime.decode.philox import uniform
from runtime.decode.request import Request
from runtime.decode.sampling import Sampler
from runtime.errors import BundleError
from tests.support.tokenizer_changes import changed
from tests.support.tokenizer_kinds import make_codec
from tests.vectors.make import FOLDER, MAKERS, render, require_clear

DEFAULTS = SamplingSpec(0.0, 0, 1.0, 0.0, 1.0)


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_files_are_what_the_code_makes(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text == render(name)
    assert len(text) < 200_000


def test_draws() -> None:
    for case in load("draws.json")["cases"]:
        assert uniform(int(case["seed"]), int(case["number"])) == case["uniform"]


def test_choices() -> None:
    for case in load("choices.json")["cases"]:
        options = check_options(Options(seed=int(case["seed"]), **case["options"]), DEFAULTS)
        sampler = Sampler(options, case["prompt"])
        logits = np.array(case["logits"], np.float32)
        assert [sampler.choose(logits) for _ in case["tokens"]] == case["tokens"]


def test_choices_are_held_away_from_boundaries_with_a_penalty_too() -> None:
    held = 0
    for case in load("choices.json")["cases"]:
        options = check_options(Options(seed=int(case["seed"]), **case["options"]), DEFAULTS)
        if options.repetition_penalty == 1.0 or not options.temperature:
            continue
        given = np.array(case["logits"], np.float32), options, case["prompt"], case["tokens"]
        require_clear(*given)
        with pytest.raises(AssertionError, match="on a boundary"):
            require_clear(*given, margin=0.2)
        held += 1
    assert held == 2


def test_streams() -> None:
    vectors = load("streams.json")
    reasons = set()
    for case in vectors["cases"]:
        core = Tokenizer.from_str(json.dumps(vectors["tokenizers"][case["tokenizer"]]))
        options = Options(max_new_tokens=len(case["tokens"]), stop=tuple(case["stop"]))
        options = check_options(options, DEFAULTS)
        row = Row(make_codec(core), Request(tuple(case["prompt"]), 1, options), [])
        pieces = []
        for token in case["tokens"][: len(case["pieces"])]:
            logits = np.zeros(core.get_vocab_size(with_added_tokens=True), np.float32)
            logits[token] = 1.0
            pieces.append(row.take(logits).text)
        assert (pieces, row.finish_reason) == (case["pieces"], case["finish_reason"])
        reasons.add(row.finish_reason)
    assert reasons == {"stop", "length"}


def test_buckets() -> None:
    for case in load("buckets.json")["cases"]:
        assert capacity_for(case["slots"], case["positions"]) == case["capacity"]


def test_manifests() -> None:
    vectors = load("manifests.json")
    parse_manifest(vectors["manifest"])
    assert vectors["code"] == BundleError.code
    assert len(vectors["cases"]) > 50
    for case in vectors["cases"]:
        with pytest.raises(BundleError):
            parse_manifest(changed(vectors["manifest"], (tuple(case["keys"]), case["value"])))
