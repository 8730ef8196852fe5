"""Chat templates as models ship them, rendered by transformers and by the runtime."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import BundleError, EngineError
from runtime.text.chat import ChatTemplate, check_messages, load_chat_template
from tests.support.processes import start_ouro

TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "sep_token": "<sep>",
    "cls_token": "<cls>",
    "mask_token": "<mask>",
}
LOOP = "{% for m in messages %}"
TEMPLATES = {
    "chatml": LOOP + "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama 3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content "
    "= '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}",
    "mistral": "{{ bos_token }}" + LOOP + "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token}}{% endif %}"
    "{% endfor %}",
    "tools": "{%- if tools %}\n{{- '# Tools' }}\n{%- for tool in tools %}\n{{- tool | tojson }}\n"
    "{%- endfor %}\n{%- endif %}\n" + LOOP + "{%- if m.tool_calls %}\n{%- for call in m.tool_calls "
    "%}\n{{- '<tool_call>' ~ call.function.name ~ (call.function.arguments | tojson) }}\n"
    "{%- endfor %}\n{%- elif m.role == 'tool' %}\n<tool_response>{{ m.content }}\n{%- else %}\n"
    "{{- m.content is defined and m.content is string }}{{ m.content }}{%- endif %}\n{%- endfor %}",
    "tools is none": "{% if tools is none and documents is none %}none{% endif %}{{ tools }}",
    "generation": LOOP + "  {% if m.role == 'assistant' %}\n{% generation %}{{ m.content }}{{ "
    "eos_token }}{% endgeneration %}\n  {% else %}{{ m.content }}{% endif %}{% endfor %}",
    "every token": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}"
    "{{ cls_token }}{{ mask_token }}{{ other_token }}",
    "namespace": "{% set ns = namespace(n=0, seen=false) %}" + LOOP + "{% if m.role == 'system' %}"
    "{% set ns.seen = true %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{% if ns.n > 4 %}"
    "{% break %}{% endif %}{{ ns.n ~ ':' ~ m.role }}{% endfor %}{{ ns.seen }}",
    "macro": "{% macro show(m, n=2) -%}\n{{ m.role | upper }}{{ caller() if caller }}{{ ' ' * n }}"
    "{%- endmacro %}" + LOOP + "{{ show(m) }}{% call show(m, 3) %}<{{ m.content }}>{% endcall %}"
    "{% endfor %}{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}"
    "{% else %}nobody{% endfor %}",
    "dict": "{{ dict(a=1, **{'b': 2}) | tojson }}{{ dict.fromkeys(['x']) | tojson(indent=2) }}"
    "{{ messages | map(attribute='role') | join(',') }}{{ strftime_now('%Y') }}",
    "reasoning": LOOP + "{{ m.reasoning_content }}|{{ m.thinking }}{% endfor %}",
    "parts": LOOP + "{% if m.content is string %}{{ m.content }}{% elif m.content %}{% for part in "
    "m.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}{% endif %}"
    "{% endfor %}",
    "formats": LOOP + "{{ '%s: %5d' % (m.role, loop.index) }}{{ '{} {:>4}'.format(m.role, 1) }}"
    "{{ m.role.ljust(12) }}{{ m.role|center(11) }}{{ 'a\nb'|indent(2) }}{{ [1] * 2 + [3] }}"
    "{% endfor %}",
}


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


RUNAWAY = {
    "calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "text": "{{ 'a' * 10**10 }}",
    "list": "{{ [1] * 10**10 }}",
    "number": "{{ 10 ** 10000000000 }}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
    "doubled": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}{{ n.s }}",
    "added": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}"
    "{% endfor %}{{ n.s }}",
    "padded": "{{ 'a'|center(10**10) }}",
    "method": "{{ 'a'.ljust(10**10) }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "format filter": "{{ '%9999999999d'|format(1) }}",
    "format method": "{{ '{:>9999999999}'.format(1) }}",
    "replace": "{{ ('a'*100000)|replace('a', 'b'*100000) }}",
    "lorem ipsum": "{{ lipsum(n=100000000) }}",
    "output": "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
}


@pytest.mark.parametrize("name", RUNAWAY)
def test_template_that_runs_away_is_one_line(name: str) -> None:
    template = ChatTemplate(RUNAWAY[name], {})
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
    assert load_chat_template(engine.bundle)._special_tokens["pad_token"] == config["pad_token"]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
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
