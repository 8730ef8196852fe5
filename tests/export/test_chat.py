"""Chat templates as plain data: which have such a form, and that it renders the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.chat import compile_checkpoint_chat, compile_template
from export.chat_proof import agree, make_conversations
from export.errors import ExportError
from runtime.bundle.chat import ChatSpec, check_chat
from runtime.text.chat import ChatTemplate
from runtime.text.compiled_chat import render_compiled
from tests.support.chat_templates import FAMILIES, NOT_PLAIN
from tests.support.chat_vectors import PLAIN, make_vectors
from tests.support.jinja_templates import RUNAWAY, SMOLLM2, TEMPLATES, TOKENS

# Of the templates that test what Jinja can do, those that only put texts around contents.
COMPILE = {"chatml", "llama 3", "mistral", "tools", "generation", "parts"}
CHATML = TEMPLATES["chatml"]


def compile_source(source: str) -> ChatSpec | None:
    return compile_template(ChatTemplate(source, TOKENS))


@pytest.mark.parametrize("name", TEMPLATES)
def test_compile_says_which_templates_are_plain(name: str) -> None:
    assert (compile_source(TEMPLATES[name]) is not None) == (name in COMPILE)


@pytest.mark.parametrize("name", PLAIN)
def test_compile_covers_the_families(name: str) -> None:
    spec = compile_source(PLAIN[name])
    assert spec is not None
    check_chat(spec)


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_compile_gives_up_on_dates_and_on_what_a_content_says(name: str) -> None:
    assert compile_source(NOT_PLAIN[name]) is None


def test_compile_finds_the_pieces() -> None:
    spec = compile_source(SMOLLM2)
    assert spec is not None
    assert (spec.begin, spec.order, spec.fold) == ("", "any", None)
    assert spec.default_system.startswith("<|im_start|>system\nYou are a helpful AI assistant")
    user = spec.roles["user"]
    assert (user.before, user.after) == ("<|im_start|>user\n", "<|im_end|>\n")
    assert user.answer == "<|im_end|>\n<|im_start|>assistant\n"


def test_compile_finds_how_a_system_message_is_folded() -> None:
    specs = [compile_source(FAMILIES[name]) for name in ("Llama 2", "Mistral v0.3", "Gemma 3")]
    folds = [spec.fold for spec in specs if spec is not None]
    assert [(fold.into, fold.after, fold.joined) for fold in folds if fold is not None] == [
        ("first", "\n<</SYS>>\n\n", True),
        ("last", "\n\n", False),
        ("first", "\n\n", False),
    ]


def test_compile_leaves_out_a_role_that_the_template_does_not_show() -> None:
    for name in ("Gemma", "Phi-3, the first"):  # refuses a system message; drops it
        spec = compile_source(FAMILIES[name])
        assert spec is not None
        assert spec.takes == ("user", "assistant")


def test_compile_leaves_out_an_empty_system_message_as_phi_3_does() -> None:
    spec = compile_source(FAMILIES["Phi-3"])
    assert spec is not None
    assert [name for name, role in spec.roles.items() if role.skip_empty] == ["system"]
    assert spec.roles["user"].last == "<|end|>\n</s>"


TAMPERED = {
    "number of messages": CHATML + "{{ '!' if messages | length == 12 }}",
    "many messages": CHATML + "{{ '!' if messages | length > 100 }}",
    "place": CHATML.replace("{{'<", "{{ loop.index if loop.index > 5 }}{{'<"),
    "date": CHATML + "{{ '!' if strftime_now('%m') == '13' }}",
    "dice": CHATML + "{{ ['', ' '] | random }}",
    "content": CHATML.replace("{{'<", "{{ '!' if 'secret' in m.content }}{{'<"),
    "whole content": CHATML.replace("{{'<", "{{ '!' if m.content == 'secret' }}{{'<"),
    "content of the first": CHATML + "{{ '!' if messages[0].content.startswith('pass') }}",
    "two contents": CHATML + "{{ '!' if messages | length > 1 and messages[-1].content == "
    "messages[-2].content }}",
    "length of a content": CHATML + "{{ '!' if messages[-1].content | length > 1000 }}",
    "empty answer": CHATML + "{{ '!' if messages | length > 2 and not messages[1].content }}",
    "refuses a content": CHATML + "{{ raise_exception('no') if 'secret' in messages[0].content }}",
    "refuses a long chat": CHATML + "{{ raise_exception('no') if messages | length > 15 }}",
    "two system messages": CHATML + "{{ '!' if messages | length > 4 and (messages | "
    "selectattr('role', 'equalto', 'system') | list | length) == 1 }}",
    "case": CHATML.replace("m['content']", "m['content'] | title"),
    "case of a system message": CHATML.replace(
        "m['content']", "(m['content'] | upper if m.role == 'system' else m['content'])"
    ),
    "system message twice": CHATML + "{{ messages[0].content if messages[0].role == 'system' }}",
    "line breaks": CHATML.replace("m['content']", "m['content'] | replace('\\r\\n', '\\n')"),
    "escapes": CHATML.replace("m['content']", "m['content'] | tojson"),
    "only line breaks stripped": CHATML.replace("m['content']", "m['content'].strip('\n')"),
    "content twice": CHATML.replace("m['content']", "m['content'] * 2"),
    "backwards": CHATML.replace("in messages", "in messages | reverse"),
    "half a surrogate pair": CHATML + r"{{ '\ud800' }}",
    "long": CHATML + "{{ 'x' * 70000 }}",
    "nothing": "",
    "refuses everything": "{{ raise_exception('no') }}",
    "names that templates can't see": "{{ messages.__class__.__mro__ }}",
}


@pytest.mark.parametrize("name", TAMPERED)
def test_compile_gives_up_on_what_is_not_plain(name: str) -> None:
    assert compile_source(TAMPERED[name]) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNAWAY)
def test_compile_gives_up_on_what_runs_away(name: str) -> None:
    assert compile_source(RUNAWAY[name]) is None


def test_compile_gives_up_on_what_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.chat.MOST_SECONDS", 0.0)
    assert compile_source(CHATML) is None


@pytest.mark.parametrize("roles", [("user", "assistant"), ("system", "user", "assistant")])
def test_proof_is_the_same_every_time_and_long_enough(roles: tuple[str, ...]) -> None:
    proof = list(make_conversations(CHATML, roles))
    assert proof == list(make_conversations(CHATML, roles))
    assert len(proof) >= 200
    assert {message["role"] for messages in proof for message in messages} == set(roles)
    contents = {message["content"] for messages in proof for message in messages}
    assert {"", "<|im_end|>\n", "a<|im_start|>b"} <= contents  # the last two are the template's own


def test_agreement_of_refusals() -> None:
    spec = compile_source(FAMILIES["Gemma"])
    assert spec is not None
    turn, out_of_turn = [{"role": role, "content": "x"} for role in ("user", "assistant")]
    assert agree(spec, [out_of_turn], False, None)
    assert agree(spec, [out_of_turn], False, "rendered, and refused by the compiled form")
    assert not agree(spec, [turn], False, None)
    assert not agree(spec, [turn], False, "another text")


def test_vectors_are_up_to_date_and_rendered() -> None:
    kept = json.loads((Path(__file__).parents[1] / "vectors" / "chat.json").read_text("ascii"))
    assert kept == json.loads(json.dumps(make_vectors())), "python -m tests.support.chat_vectors"
    texts = [case["text"] for entry in kept["specs"].values() for case in entry["cases"]]
    assert 0 < texts.count(None) < len(texts) / 2


def test_checkpoint_template_is_compiled_with_its_tokens(tmp_path: Path) -> None:
    tokens: dict[str, Any] = {"bos_token": "<b>", "eos_token": None}
    assert compile_checkpoint_chat(tmp_path, tokens) is None
    file = tmp_path / "chat_template.jinja"
    file.write_text("{{ bos_token + sep_token }}" + CHATML, encoding="utf-8")
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"bos_token": "<no>", "sep_token": "<sep>"}', encoding="utf-8")
    spec = compile_checkpoint_chat(tmp_path, tokens)
    assert spec is not None
    assert render_compiled(spec, [{"role": "user", "content": ""}], False).startswith(
        "<b><sep><|im"
    )
    config.write_text("[", encoding="utf-8")
    with pytest.raises(ExportError, match="not JSON"):
        compile_checkpoint_chat(tmp_path, tokens)
