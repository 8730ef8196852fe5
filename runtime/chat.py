"""Renders a bundle's chat template the way Hugging Face does.

Source: transformers 5.23, utils/chat_template_utils.py (the same jinja environment and helpers).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.bundle import Bundle
from runtime.errors import BundleError, EngineError

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BundleError(f"the chat template is not valid: {_line(error)}") from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation.

        Args:
            messages: each with "role" and "content".
            add_generation_prompt: end with the beginning of the assistant's turn.

        Raises:
            EngineError: the template refuses the conversation.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise EngineError(f"the chat template refused: {_line(error)}") from error


def load_chat_template(bundle: Bundle) -> ChatTemplate:
    """The chat template of a bundle.

    Raises:
        EngineError: the bundle has none.
        BundleError: it is not a valid template.
    """
    spec = bundle.manifest.tokenizer
    if spec.chat_template is None:
        raise EngineError("this bundle has no chat template; leave out chat / --chat")
    file = bundle.file(spec.chat_template)
    try:
        source = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not UTF-8 text") from error
    tokens = {"bos_token": spec.bos_token, "eos_token": spec.eos_token}
    return ChatTemplate(source, {name: token for name, token in tokens.items() if token})


def check_messages(prompt: object) -> list[dict[str, Any]]:
    """A conversation from a user's text or a list of messages.

    Raises:
        EngineError: something else, or nothing.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes) or not prompt:
        raise EngineError("chat takes a text or a list of messages, each with role and content")
    for message in prompt:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise EngineError(f"{message!r:.60} is not a message; it needs role and content")
    return [dict(message) for message in prompt]


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own tojson escapes HTML; Hugging Face's does not."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
