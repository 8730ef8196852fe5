from __future__ import annotations

import pytest

from runtime.errors import BundleError, EngineError
from runtime.text.chat import ChatTemplate, check_messages
from tests.support.jinja_templates import SMOLLM2

# The template that SmolLM2-135M-Instruct ships.
MESSAGES = [
    {"role": "user", "content": 'Hi <there> & "you"'},
    {"role": "assistant", "content": "Hello\n"},
    {"role": "user", "content": "é"},
]
TEMPLATES = [
    SMOLLM2,
    "{{ bos_token }}\n  {% if true %}\n  x\n  {% endif %}\n{{ messages | tojson }}{{ eos_token }}",
    (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}"
        "{{ m.content | trim }}{% endfor %}"
    ),
    "{{ messages | tojson(indent=2) }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_chat_renders_as_transformers_does(source: str, prompt: bool) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    expected, _ = utils.render_jinja_template(
        conversations=[MESSAGES], chat_template=source, add_generation_prompt=prompt, **tokens
    )
    assert ChatTemplate(source, tokens).render(MESSAGES, prompt) == expected[0]


def test_chat_refusal_is_one_line() -> None:
    template = ChatTemplate("{{ raise_exception('only\nusers') }}", {})
    with pytest.raises(EngineError, match="refused: only users"):
        template.render(MESSAGES)
    with pytest.raises(BundleError, match="not valid"):
        ChatTemplate("{% if %}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
    ],
)
def test_chat_template_is_sandboxed(source: str) -> None:
    with pytest.raises(EngineError, match="refused"):
        ChatTemplate(source, {}).render(MESSAGES)


def test_chat_knows_the_date() -> None:
    assert len(ChatTemplate("{{ strftime_now('%Y') }}", {}).render(MESSAGES)) == 4


@pytest.mark.parametrize("prompt", [[], 3, b"x", [1], [{"role": "user"}], None])
def test_check_messages_refuses(prompt: object) -> None:
    with pytest.raises(EngineError):
        check_messages(prompt)
