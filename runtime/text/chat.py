"""Renders a bundle's chat template the way Hugging Face does.

Source: transformers 5.23, utils/chat_template_utils.py (the same jinja environment and helpers).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import BundleError, EngineError

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle

Message = Mapping[str, Any]
TOKENIZER_CONFIG = "tokenizer_config.json"


MOST_SOURCE = 2**20  # characters of a template; real ones have some thousand
_MEND = "mend the model's chat template, and export it again"
_CORRECT = f"correct the model's {TOKENIZER_CONFIG}, and export it again"
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A chat template.

    Attributes:
        source: its Jinja text.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compiles a template.

        Args:
            source: the template.
            special_tokens: names that it may use, such as bos_token, and their texts.

        Raises:
            BundleError: it is no Jinja template, or too large or too deep for one.
        """
        from runtime.text.chat_sandbox import ChatEnvironment

        self.source = source
        self._special_tokens = dict(special_tokens)
        if len(source) > MOST_SOURCE:
            raise BundleError(
                f"the chat template is not valid: it has {len(source)} characters, "
                f"allowed: up to {MOST_SOURCE}",
                _MEND,
            )
        try:
            self._template = ChatEnvironment().compile_bounded(source)
        # A template is a stranger's program: Jinja and Python's compiler raise whatever they meet.
        except Exception as error:
            raise BundleError(f"the chat template is not valid: {_line(error)}", _MEND) from error

    def prove(self) -> None:
        """Renders a short conversation, which a template may refuse but must not run away with.

        Raises:
            BundleError: it calls itself without an end, or makes more than a template may.
        """
        from runtime.text.chat_sandbox import TooMuchError

        try:
            self.render([{"role": "user", "content": "Hi"}])
        except EngineError as error:
            cause = error.__cause__
            if isinstance(cause, TooMuchError | RecursionError | MemoryError | OverflowError):
                raise BundleError(
                    f"the chat template can't be used: {_line(cause)}", _MEND
                ) from error

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt of a conversation.

        Args:
            messages: each with "role" and "content", or what the template takes in its place.
            add_generation_prompt: end with the beginning of the assistant's turn.
            tools: JSON schemas of functions that the model may call.
            documents: texts to answer from.

        Raises:
            EngineError: the template refuses the conversation, or does more than it may.
        """
        from runtime.text.chat_sandbox import MOST_TURNS, TURNS

        try:
            return str(
                self._template.render(
                    {
                        **self._special_tokens,
                        "messages": [_prepare(message) for message in messages],
                        "tools": _plain(tools),
                        "documents": _plain(documents),
                        "add_generation_prompt": add_generation_prompt,
                        TURNS: [MOST_TURNS],
                    }
                )
            )
        except Exception as error:  # whatever a stranger's program runs into
            raise EngineError(
                f"the chat template refused: {_line(error)}", "change the conversation"
            ) from error


class ChatSource:
    """The chat template of a bundle, read and verified at once, and made when it is asked for.

    A bundle may be moved or replaced while an engine has it open.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Reads what there is.

        Raises:
            BundleError: a file has changed since the bundle was opened.
        """
        name = bundle.manifest.tokenizer.chat_template
        known = TOKENIZER_CONFIG in bundle.manifest.files
        self._bundle = bundle
        self._made: ChatTemplate | None = None
        self._source = bundle.read(name) if name else None
        self._config = bundle.read(TOKENIZER_CONFIG) if name and known else None

    def make(self) -> ChatTemplate:
        """The chat template, made once. Called from one thread at a time.

        Raises:
            EngineError: the bundle has none.
            BundleError: it is not a valid template.
        """
        if self._made is not None:
            return self._made
        spec, path = self._bundle.manifest.tokenizer, self._bundle.path
        if self._source is None:
            raise EngineError("this bundle has no chat template", "leave out chat / --chat")
        source = _decode(self._source, path / str(spec.chat_template))
        tokens = {"bos_token": spec.bos_token, "eos_token": spec.eos_token}
        self._made = _make_template(source, self._config, path / TOKENIZER_CONFIG, tokens)
        return self._made


def read_chat_template(
    file: Path, config: Path | None, bos_token: str | None, eos_token: str | None
) -> ChatTemplate:
    """The chat template in a file.

    Args:
        file: the template.
        config: tokenizer_config.json, whose special tokens it may name; None for none.
        bos_token: the text of this one, which goes before what `config` says.
        eos_token: the same.

    Raises:
        BundleError: it is not a valid template, or `config` not an object in JSON.
    """
    source = _decode(file.read_bytes(), file)
    held = None if config is None else config.read_bytes()
    tokens = {"bos_token": bos_token, "eos_token": eos_token}
    return _make_template(source, held, config or file, tokens)


def _make_template(
    source: str, config: bytes | None, file: Path, tokens: Mapping[str, str | None]
) -> ChatTemplate:
    """A template; `config` is the content of `file`, and `tokens` go before what it says."""
    named = {name: token for name, token in tokens.items() if token}
    own = {} if config is None else _read_special_tokens(config, file)
    return ChatTemplate(source, {**own, **named})


def _decode(content: bytes, file: Path) -> str:
    try:
        # As a text file is read: each way to end a line is one.
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not UTF-8 text", _MEND) from error


def _read_special_tokens(content: bytes, file: Path) -> dict[str, str]:
    """Every special token that the tokenizer has a name for, as templates may use them."""
    try:
        config = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON: {_line(error)}", _CORRECT) from error
    if not isinstance(config, dict):
        raise BundleError(f"{file} holds a {type(config).__name__}, not an object", _CORRECT)
    own = config.get("model_specific_special_tokens")
    extra = config.get("extra_special_tokens")
    values = {
        **{name: value for name, value in config.items() if name.endswith("_token")},
        **(own if isinstance(own, dict) else {}),
        **(extra if isinstance(extra, dict) else {}),
    }
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in values.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def check_messages(prompt: object) -> list[dict[str, Any]]:
    """A conversation from a user's text or a list of messages.

    Raises:
        EngineError: something else, or nothing.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes) or not prompt:
        raise EngineError(
            "chat takes a text or a list of messages, each with role and content",
            "give one of the two, and at least one message",
        )
    for message in prompt:
        known = message if isinstance(message, Mapping) else {}
        said = [name for name, value in known.items() if name != "role" and value is not None]
        if not isinstance(known.get("role"), str) or not (said or "content" in known):
            raise EngineError(
                f"{message!r:.60} is not a message", "it needs role and content (or tool_calls)"
            )
    return [dict(message) for message in prompt]


def _prepare(message: Message) -> dict[str, Any]:
    """A message as templates get it: no keys without a value, reasoning under its usual names."""
    plain = {name: _plain(value) for name, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in REASONING if plain.get(name) is not None), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """A value as JSON has it, so that a template gets no object with methods of its own."""
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case Mapping():
            return {_plain(key): _plain(item) for key, item in value.items()}
        case tuple():
            return tuple(_plain(item) for item in value)
        case list():
            return [_plain(item) for item in value]
        case _:
            return f"<{type(value).__name__}>"


def _line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself, or is nested, too deep"
    return " ".join(str(error).split())[:200] or type(error).__name__
