"""Conversations on which a compiled chat template is proven, and what agreement is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

from jinja2 import TemplateError, nodes

from runtime.bundle.chat import ChatSpec
from runtime.errors import EngineError
from runtime.text.chat_sandbox import ChatEnvironment
from runtime.text.compiled_chat import render_compiled

Message = dict[str, str]

SEED = 20240607
TURNS = range(1, 10)
ROUNDS = 6  # of the conversations of every length
SHORT = range(1, 4)  # messages: every order of roles is tried
MOST_LITERALS, MOST_NUMBERS = 150, 8
LONGEST = 2000  # characters of a literal, and the largest number, that are tried
PADS = ("", "", "", " ", "\n", "\n\n", "\t ", "\r\n", "\u3000", "\xa0\x1f", "\x85\u2028", "\u200b")
CONTENTS = (
    "",
    " ",
    "\n",
    " \n\t\u3000\x1c ",
    "Hi",
    "What is 2 + 2?",
    "two\nlines\n\nand a third",
    "日本語 😀 é e\u0301 \u202bعربى",
    "x" * 1500,
    "{{ x }} {% if y %} {# z #}",
    "\\n \\u0041 \"quoted\" 'so' & <b>",
    "false",
    "none",
    "0",
    "system",
    "user",
    "assistant",
    "tool",
    "<think>",
    "</think>",
    "<think>\nwhy\n</think>\n\nso",
    "<tool_call>\n{}\n</tool_call>",
    "<tool_response>x</tool_response>",
    "<|im_start|>system\nyou<|im_end|>\n",
    "<s>[INST] <<SYS>>\nyou\n<</SYS>>\n\nme [/INST] so </s>",
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<bos><start_of_turn>model\nso<end_of_turn>\n",
    "<|user|>\nHi<|end|>\n<|assistant|>\n<|endoftext|>",
    "/think",
    "/no_think",
)


def make_conversations(source: str, roles: Sequence[str]) -> Iterator[list[Message]]:
    """Conversations that bring out what a template's text may depend on.

    - Of one to nine turns, with and without a system message, ended by the user and by the
      assistant; and of roles in any order.
    - Every short order of roles, with one content empty or blank, at every place.
    - For every content in CONTENTS and every text that stands in the template itself, which is what
      it can compare a content with: this content everywhere, and at one place.
    - As long, and with contents as long, as the numbers that stand in the template.

    Args:
        source: the template's text.
        roles: of the messages.

    Yields:
        At least 200, the same every time.
    """
    dice = random.Random(SEED)
    literals, numbers = _read_literals(source)
    contents = [*CONTENTS, *literals]
    openings = [["system"], []] if "system" in roles else [[]]
    for _, turns, opening, ended in itertools.product(range(ROUNDS), TURNS, openings, (0, 1)):
        talk = _take_turns(opening, 2 * turns - ended)
        yield [{"role": role, "content": _write(dice, contents)} for role in talk]
    for _, length in itertools.product(range(2 * ROUNDS), TURNS):
        talk = dice.choices(roles, k=length)
        yield [{"role": role, "content": _write(dice, contents)} for role in talk]
    for length in SHORT:
        for order in itertools.product(roles, repeat=length):
            for blank, place in itertools.product(("", " \n"), range(length)):
                yield _say(order, "Hi", {place: blank})
    everything = " ".join(contents)
    marked = [f"a{one}b" for one in literals]
    for content, opening in itertools.product([*contents, *marked, everything], openings):
        talk = _take_turns(opening, dice.randint(3, 4))
        yield _say(talk, content)
        yield _say(talk, "Hi", {dice.randrange(len(talk)): content})
    lengths = {number + more for number in (*numbers, 40) for more in (-1, 0, 1)}
    for length, opening in itertools.product(sorted(lengths - {-1, 0}), openings):
        yield _say(_take_turns(opening, min(length, 200)), "Hi")
        yield _say(_take_turns(opening, 3), "x" * length)


def agree(spec: ChatSpec, messages: list[Message], prompt: bool, expected: str | None) -> bool:
    """Whether a compiled form does with a conversation what it must.

    Args:
        spec: the compiled form.
        messages: the conversation.
        prompt: with the beginning of the assistant's turn.
        expected: what the template renders; None where it refuses.
    """
    try:
        return render_compiled(spec, messages, prompt) == expected
    except EngineError:
        return expected is None or not _is_in_turn(messages)


def _is_in_turn(messages: list[Message]) -> bool:
    roles = [message["role"] for message in messages]
    opening = roles[:1] if roles[0] == "system" else []
    length = len(roles) - len(opening)
    return length > 0 and roles == _take_turns(opening, length)


def _take_turns(opening: list[str], length: int) -> list[str]:
    return [*opening, *(("user", "assistant")[place % 2] for place in range(length))]


def _say(roles: Sequence[str], content: str, at: Mapping[int, str] | None = None) -> list[Message]:
    return [
        {"role": role, "content": (at or {}).get(place, content)}
        for place, role in enumerate(roles)
    ]


def _write(dice: random.Random, contents: list[str]) -> str:
    parts = dice.choices(contents, k=dice.choice((1, 1, 1, 2, 3)))
    return dice.choice(PADS) + dice.choice(("", " ", "\n")).join(parts) + dice.choice(PADS)


def _read_literals(source: str) -> tuple[list[str], list[int]]:
    """Texts and small numbers that stand in a template, each once."""
    try:
        tree = ChatEnvironment().parse(source)
        values = [node.value for node in tree.find_all(nodes.Const)]
        plain = [node.data for node in tree.find_all(nodes.TemplateData)]
    except (TemplateError, RecursionError):  # a template that compiled, and parsed then
        return [], []
    texts = [value for value in (*values, *plain) if isinstance(value, str)]
    texts = [text for text in dict.fromkeys(texts) if len(text) <= LONGEST]
    numbers = [value for value in values if type(value) is int and 0 < value <= LONGEST]
    return texts[:MOST_LITERALS], list(dict.fromkeys(numbers))[:MOST_NUMBERS]
