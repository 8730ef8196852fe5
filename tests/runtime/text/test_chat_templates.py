"""Chat templates as models ship them, rendered by transformers and by the runtime."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from runtime import Engine
from runtime.errors import BundleError, EngineError
from runtime.text.chat import ChatSource, ChatTemplate, check_messages
from tests.support.jinja_templates import RUNAWAY, TEMPLATES, TOKENS
from tests.support.processes import start_ouro


def converse(seed: int) -> list[dict[str, Any]]:
    """A conversation with what real ones have: tools, parts, reasoning, missing contents."""
    dice = random.Random(seed)
    texts = ["Hi", " spaced \n", '<there> & "you"', "日本 😀", "", "{{ x }}"]
    messages: list[dict[str, Any]] = []
    if dice.random() < 0.4:
        messages.append({"role": "system", "content": dice.choice(texts)})
    call = {"type": "function", "function": {"name": "f", "arguments": {"é": [1, None, "<"]}}}
    for _ in range(dice.randint(1, 3)):
        messages.append({"role": "user", "content": dice.choice(texts)})
        answer: dict[str, Any] = {"role": "assistant", "content": dice.choice(texts)}
        if dice.random() < 0.3:
            answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        if dice.random() < 0.2:
            answer = {"role": "assistant", "tool_calls": [call]}
        if dice.random() < 0.2:
            answer["content"] = [{"type": "text", "text": "a"}, {"type": "image"}]
        if dice.random() < 0.2:
            answer[dice.choice(["reasoning", "thinking", "reasoning_content"])] = "why"
        messages.append(answer)
        if "tool_calls" in answer:
            messages.append({"role": "tool", "content": "42", "name": "f"})
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_apply_chat_template(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    core = Tokenizer(models.WordLevel({"a": 0}, "a"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **TOKENS)
    tokenizer.chat_template = TEMPLATES[name]
    ours = ChatTemplate(TEMPLATES[name], TOKENS)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": "<int>"}}}]
    for seed in range(40):
        messages, prompt = converse(seed), bool(seed % 2)
        given = tools if seed % 3 == 0 else None
        try:
            expected = tokenizer.apply_chat_template(
                messages, tools=given, tokenize=False, add_generation_prompt=prompt
            )
        except Exception:
            with pytest.raises(EngineError, match="the chat template refused"):
                ours.render(check_messages(messages), prompt, given)
            continue
        assert ours.render(check_messages(messages), prompt, given) == expected


@pytest.mark.parametrize("name", RUNAWAY)
def test_template_that_runs_away_is_one_line(name: str) -> None:
    template = ChatTemplate("{% set BIG = 'a' * 4000000 %}" + RUNAWAY[name], {})
    with pytest.raises(EngineError, match=r"^the chat template refused: [^\n]*$"):
        template.render([{"role": "user", "content": "x"}])
    if name != "range":
        with pytest.raises(BundleError, match=r"^the chat template can't be used: [^\n]*$"):
            template.prove()


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ a" + ".b" * 50000 + " }}",
        "{% for i in [1] %}" * 90 + "{% endfor %}" * 90,
        "x" * (2**20 + 1),
    ],
)
def test_template_too_deep_or_large_is_refused(source: str) -> None:
    with pytest.raises(BundleError, match=r"^the chat template is not valid: [^\n]*$"):
        ChatTemplate(source, {})


def test_special_tokens_come_from_the_bundle(engine: Any) -> None:
    config = json.loads(engine.bundle.file("tokenizer_config.json").read_text())
    assert ChatSource(engine.bundle).make()._special_tokens["pad_token"] == config["pad_token"]


def test_the_template_is_the_one_that_was_verified(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    with Engine.open("bundle", backend="cpu", threads=1) as opened:
        expected = opened.chat_template().render([{"role": "user", "content": "Hi"}])
    with Engine.open("bundle", backend="cpu", threads=1) as opened:
        monkeypatch.chdir("/")
        name = opened.manifest.tokenizer.chat_template
        assert name is not None
        (tmp_path / "bundle" / name).write_text("another")
        assert opened.chat_template().render([{"role": "user", "content": "Hi"}]) == expected
        with pytest.raises(BundleError, match="cannot read"):
            opened.bundle.read(name)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BundleError, match="has changed since it was verified"):
            opened.bundle.read(name)


@pytest.mark.parametrize(
    "encoding",
    ["ascii", *(pytest.param(one, marks=pytest.mark.slow) for one in ("latin-1", "cp1252"))],
)
def test_output_in_a_narrow_encoding(
    tiny_bundle: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    prompt = [tiny_bundle, "語", "--max-new-tokens", "3"]
    for arguments in (["run", *prompt], ["inspect", tiny_bundle], ["--help"]):
        process = start_ouro(*arguments)
        _, stderr = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in stderr) == (0, False), stderr


def test_a_prompt_that_begins_with_a_dash(tiny_bundle: Path) -> None:
    process = start_ouro("run", tiny_bundle, "-x")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "put -- before a text that begins with a dash" in stderr
    assert len(stderr.splitlines()) == 1
