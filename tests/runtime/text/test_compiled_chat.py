from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle.chat import SPACE, ChatSpec, FoldSpec, RoleSpec
from runtime.bundle.manifest import _read
from runtime.errors import EngineError
from runtime.text.compiled_chat import render_compiled

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "chat.json").read_text("ascii"))


def read_spec(entry: dict[str, Any]) -> ChatSpec:
    spec = entry["spec"]
    roles = {name: RoleSpec(**role) for name, role in spec["roles"].items()}
    return ChatSpec(**{**spec, "roles": roles, "fold": spec["fold"] and FoldSpec(**spec["fold"])})


SPECS = {name: read_spec(entry) for name, entry in VECTORS["specs"].items()}


@pytest.mark.parametrize("name", SPECS)
def test_compiled_chat_renders_the_vectors(name: str) -> None:
    for case in VECTORS["specs"][name]["cases"]:
        given = case["messages"], case["add_generation_prompt"]
        if case["text"] is None:
            with pytest.raises(EngineError):
                render_compiled(SPECS[name], *given)
        else:
            assert render_compiled(SPECS[name], *given) == case["text"]


@pytest.mark.parametrize("message", VECTORS["refused_messages"])
def test_compiled_chat_refuses_what_it_does_not_know(message: dict[str, Any]) -> None:
    for spec in SPECS.values():
        with pytest.raises(EngineError, match=r"^the compiled chat template: message 1 [^\n]*$"):
            render_compiled(spec, [message])


@pytest.mark.parametrize(
    ("name", "messages", "words"),
    [
        ("ChatML", [{"role": "tool", "content": "42"}], "the role 'tool', allowed: system, user"),
        ("Gemma", [{"role": "system", "content": "x"}], "'system', allowed: user, assistant;"),
        ("ChatML", [{"role": "user", "content": "x", "tool_calls": [1]}], "has 'tool_calls'"),
        ("ChatML", [{"role": "user", "content": 3}], "has 3 as content, allowed: a text"),
        ("Gemma", [{"role": "assistant", "content": "x"}], "here the role 'user'"),
        ("Vicuna", [{"role": role, "content": "x"} for role in ("user", "system")], "message 2 "),
        ("Llama 2", [{"role": "system", "content": "x"}], "ends with the user's message"),
        ("ChatML", [], "ends with the user's message"),
    ],
)
def test_compiled_chat_refuses_by_name(name: str, messages: Any, words: str) -> None:
    with pytest.raises(EngineError) as caught:
        render_compiled(SPECS[name], messages)
    assert words in str(caught.value)
    assert "chat_template.jinja" in str(caught.value)


def test_compiled_chat_takes_none_as_absent() -> None:
    message = {"role": "user", "content": "x", "tool_calls": None}
    assert render_compiled(SPECS["ChatML"], [message]).startswith("<|im_start|>user\nx<|im_end|>")


def test_space_is_what_python_strips() -> None:
    assert set(SPACE) == {chr(code) for code in range(0x110000) if chr(code).isspace()}


def test_spec_is_read_strictly_as_the_manifest_is() -> None:
    # A manifest's texts have no control characters but where it says so.
    data = json.loads(json.dumps(VECTORS["specs"]["Mistral v0.3"]["spec"]).replace("\\n", "|"))
    assert _read(ChatSpec, data, "tokenizer.chat").roles["user"].before == "[INST] "
