"""Writes tests/vectors/chat.json: compiled chat templates, conversations, and their texts.

For engines in other languages, which render the specs: `python -m tests.support.chat_vectors`.
The texts are the Jinja templates' own, so that they check the compiled forms as well.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from export.chat import compile_template
from runtime.bundle.chat import SPACE, ChatSpec
from runtime.errors import EngineError
from runtime.text.chat import ChatTemplate
from runtime.text.compiled_chat import render_compiled
from tests.support.chat_templates import FAMILIES
from tests.support.jinja_templates import SMOLLM2, TEMPLATES, TOKENS

FILE = Path(__file__).parents[1] / "vectors" / "chat.json"
PLAIN = {"ChatML": TEMPLATES["chatml"], "SmolLM2": SMOLLM2, **FAMILIES}
SHORT = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
# Roles by their first letter, and the contents.
TALKS: list[tuple[str, list[str]]] = [
    ("u", ["Hi"]),
    ("su", ["Be brief.", "Hi"]),
    ("ua", ["Hi", "Hello!"]),
    ("suau", ["Be brief.", "Hi", "Hello!", "Who are you?"]),
    (
        "suaua",
        [" \n be \t", "\u3000Hi\n\n", "\n Hello! \x1f", "\xa0 Who?\u2028", " \u200bI \ufeff"],
    ),
    ("su", ["", ""]),
    ("su", [" \n", " \u2003 "]),
    ("suau", ["日本 😀", "e\u0301 é", "عربى\nتجربة", '"\\u0041\\n" <b> & \'']),
    ("uau", ["<|im_end|>\n<|im_start|>system\nx", "<|eot_id|></s>", "[INST] {{ x }} {% y %}"]),
    ("s", ["Be brief."]),
    ("uu", ["Hi", "Hi?"]),
    ("au", ["Hello!", "Hi"]),
    ("usa", ["Hi", "Be brief.", "Hello."]),
    ("ut", ["Hi", "42"]),
    ("", []),
]
# Messages that no spec takes.
REFUSED: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "user", "content": None},
    {"role": "user"},
    {"role": "user", "content": "Hi", "tool_calls": [{"name": "f"}]},
    {"role": "user", "content": "Hi", "name": "Ann"},
    {"role": "User", "content": "Hi"},
    {"content": "Hi"},
]


def make_vectors() -> dict[str, Any]:
    """Every spec with its conversations; a text of None means that it is to be refused."""
    templates = {name: ChatTemplate(source, TOKENS) for name, source in PLAIN.items()}
    compiled = {name: compile_template(template) for name, template in templates.items()}
    return {
        "about": "Compiled chat templates: messages -> text; null: refused. The algorithm is in "
        "runtime/text/compiled_chat.py, `space` is its SPACE. Made by "
        "`python -m tests.support.chat_vectors`.",
        "space": SPACE,
        "refused_messages": REFUSED,
        "specs": {
            name: {"spec": dataclasses.asdict(spec), "cases": _make_cases(templates[name], spec)}
            for name, spec in compiled.items()
            if spec is not None
        },
    }


def _make_cases(template: ChatTemplate, spec: ChatSpec) -> list[dict[str, Any]]:
    cases = []
    for roles, contents in TALKS:
        messages = [
            {"role": SHORT[letter], "content": content}
            for letter, content in zip(roles, contents, strict=True)
        ]
        for prompt in (False, True):
            try:
                render_compiled(spec, messages, prompt)
                text = template.render(messages, prompt)
            except EngineError:
                text = None
            cases.append({"messages": messages, "add_generation_prompt": prompt, "text": text})
    return cases


def write_vectors(file: Path = FILE) -> None:
    """Writes them, a case a line, in ASCII."""
    vectors = make_vectors()
    specs = vectors.pop("specs")
    lines = [f"{json.dumps(name)}: {json.dumps(value)}," for name, value in vectors.items()]
    lines.append('"specs": {')
    for place, (name, entry) in enumerate(specs.items(), 1):
        lines.append(f'{json.dumps(name)}: {{"spec": {json.dumps(entry["spec"])},')
        lines.append('"cases": [')
        lines.append(",\n".join(json.dumps(case) for case in entry["cases"]))
        lines.append("]}" if place == len(specs) else "]},")
    file.write_text("\n".join(["{", *lines, "}", "}", ""]), encoding="ascii")


if __name__ == "__main__":
    write_vectors()
