"""Every recorded request, asked again of `runtime.Engine`; `tests/runtime/cpp` asks the C++ one."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from runtime import Engine
from tests.conformance.bundles import names, recorded
from tests.conformance.comparing import differences
from tests.conformance.recorder import answer

# What is particular to these is the graph's, which other fast tests run. Of text, of tokenizers and
# of errors the others have all that they have.
COMPUTED_ELSEWHERE = ("qwen2", "qwen3-int8", "mistral-fp16", "metaspace")


@pytest.mark.parametrize("name", names(slow=COMPUTED_ELSEWHERE))
def test_python_answers_as_recorded(
    name: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recording = json.loads(recorded(name, request, tmp_path_factory).read_text())
    bundle, asked = Path(recording["bundle"]), recording["requests"]
    assert len({one["name"] for one in asked}) == len(asked) > 100
    wrong = []
    with Engine.open(bundle, backend="cpu", threads=1) as engine:
        for one in reversed(asked):  # what came before has no say
            found = json.loads(json.dumps(answer(engine, bundle, one)))
            wrong += [f"{one['name']}: {line}" for line in differences(found, one["answer"])]
    assert wrong == []


def test_what_is_recorded_says_something(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every way for a text to end, and errors, are among the answers."""
    text = recorded("llama-halting", request, tmp_path_factory).read_text()
    asked = json.loads(text)["requests"]
    reasons = {one["answer"]["finish_reason"] for one in asked if "finish_reason" in one["answer"]}
    assert reasons == {"length", "eos", "stop", "cancelled"}
    errors = [one["answer"]["error"]["code"] for one in asked if "error" in one["answer"]]
    assert len(errors) > 40
    assert set(errors) == {7, 8}
    chosen = {one["answer"]["depth"] for one in asked if one.get("depth") == "auto"
              and "depth" in one["answer"]}  # fmt: skip
    assert len(chosen) > 1


def test_another_answer_is_seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = recorded("llama", request, tmp_path_factory).read_text()
    answers = [one["answer"] for one in json.loads(text)["requests"]]
    for change in (
        lambda one: one["tokens"].__setitem__(0, one["tokens"][0] + 1),
        lambda one: one.__setitem__("text", one["text"] + " "),
        lambda one: one["logprobs"][0].__setitem__("logprob", one["logprobs"][0]["logprob"] + 1e-5),
        lambda one: one["logprobs"][0]["best"].pop(),
        lambda one: one.pop("depth"),
    ):
        one = next(one for one in answers if "tokens" in one and one["logprobs"])
        other = copy.deepcopy(one)
        change(other)
        assert list(differences(other, one))
        assert not list(differences(one, one))
    logits = next(one for one in answers if "float32" in one)
    first = "A" if logits["float32"][4] != "A" else "B"
    other = {**logits, "float32": logits["float32"][:4] + first * 4 + logits["float32"][8:]}
    assert list(differences(other, logits))
