"""Renders a compiled chat template. No Jinja: an engine in any language can do the same."""

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.bundle.chat import SPACE, ChatSpec
from runtime.errors import EngineError


def render_compiled(
    spec: ChatSpec, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
) -> str:
    """The prompt of a conversation, exactly as the bundle's chat template renders it.

    1. A message is a role that the spec takes and a text as content; a key with None is absent.
    2. The roles follow `order`. "any": all do. "system_first": "system" is at most the first.
       "alternating": after a first "system", or none: "user", "assistant", "user" and so on.
    3. Messages with the content "" are taken out where their role, or the fold, has `skip_empty`.
    4. The text begins with `begin`, and `default_system` unless a system message is now first.
    5. With a `fold`, a first system message is taken out. If the first or last message that is
       left, as `into` says, is the user's, its content gets a prefix: `fold.before`, the system
       content stripped by `fold.strip`, `fold.after`.
    6. Each message adds its role's `before`, its content stripped by `strip` (of SPACE's characters
       at its left, right or both ends; the prefix with it if `joined`), and `after`, or if last
       `answer` with `add_generation_prompt`, else `last`. Refused if that is None or none is left.

    Raises:
        EngineError: a message or an order of messages that the spec does not take.
    """
    talk = [_read(spec, number, message) for number, message in enumerate(messages, 1)]
    start = 1 if talk and talk[0][0] == "system" else 0
    for place, (name, _) in enumerate(talk[start:]):
        due = "assistant" if place % 2 else "user"
        late = spec.order == "system_first" and name == "system"
        if late or (spec.order == "alternating" and name != due):
            wanted = "a system message only as the first" if late else f"here the role {due!r}"
            raise _refuse(start + place + 1, f"is of the role {name!r}", wanted)
    fold, prefix, target = spec.fold, "", -1
    skipped = {name for name, one in spec.roles.items() if one.skip_empty}
    skipped |= {"system"} if fold and fold.skip_empty else set()
    talk = [(name, content) for name, content in talk if content or name not in skipped]
    opened = bool(talk) and talk[0][0] == "system"
    if opened and fold:
        prefix = fold.before + _strip(talk.pop(0)[1], fold.strip) + fold.after
        target = 0 if fold.into == "first" else len(talk) - 1
    text, end = spec.begin + ("" if opened else spec.default_system), None
    for place, (name, content) in enumerate(talk):
        role, put = spec.roles[name], prefix if place == target and name == "user" else ""
        whole = fold is not None and fold.joined
        content = _strip(put + content, role.strip) if whole else put + _strip(content, role.strip)
        end = role.answer if add_generation_prompt else role.last
        text += role.before + content + (role.after if place < len(talk) - 1 else end or "")
    if end is None:
        raise _refuse(len(messages), "is the last", "a chat that ends with the user's message")
    return text


def _read(spec: ChatSpec, number: int, message: Mapping[str, Any]) -> tuple[str, str]:
    given = {key: value for key, value in message.items() if value is not None}
    role, content = given.pop("role", None), given.pop("content", None)
    if given:
        raise _refuse(number, f"has {next(iter(given))!r:.60}", "only role and content")
    if role not in spec.takes:
        raise _refuse(number, f"is of the role {role!r:.60}", ", ".join(spec.takes))
    if not isinstance(content, str):
        raise _refuse(number, f"has {content!r:.60} as content", "a text")
    return str(role), content


def _refuse(number: int, problem: str, allowed: str) -> EngineError:
    return EngineError(
        f"the compiled chat template: message {number} {problem}, allowed: {allowed}",
        "change the conversation, or render it with chat_template.jinja",
    )


def _strip(text: str, sides: str) -> str:
    text = text.lstrip(SPACE) if sides in ("left", "both") else text
    return text.rstrip(SPACE) if sides in ("right", "both") else text
