"""Chat template to plain data that renders exactly the same, proven on generated conversations.

The pieces are found by rendering the template on contents that are known, and read off from where
those come out. Nothing is taken on trust: a candidate stands only if it agrees with the template on
every conversation of `export.chat_proof`:

- What the compiled form renders is, to the character, what the template renders.
- What the template refuses, the compiled form refuses.
- The compiled form may refuse more (a system message that the template does not show, roles out of
  order), but no conversation of an optional system message, where it takes one, and user and
  assistant in turn that the template renders.

A template that no candidate agrees with has no compiled form; engines that have Jinja render it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from export.chat_proof import Message, agree, make_conversations
from export.errors import ExportError
from export.tokens import TEMPLATE
from runtime.bundle.chat import FOLDS, ORDERS, ROLES, STRIPS, ChatSpec, FoldSpec, RoleSpec
from runtime.errors import BundleError, EngineError
from runtime.text.chat import TOKENIZER_CONFIG, ChatTemplate, read_chat_template
from runtime.text.compiled_chat import render_compiled

Render = Callable[[Sequence[Message], bool], str | None]

MOST_SECONDS = 30.0  # real templates take up to one
MOST_CHARACTERS = 2**16  # of a compiled form as JSON; real ones have some hundred
# What would render another text another day, whatever was proven today.
UNSTEADY = re.compile(r"\b(strftime_now|random|lipsum)\b")
SYSTEM, USER, ASSISTANT = ROLES
PADDED = " \n\u3000 padded \t\u3000\n"
# Brackets that open a special token: where pieces have one in common, it belongs to what follows.
OPENING = "<|["


class _TooLongError(Exception):
    """The template takes more time than it is worth."""


def compile_checkpoint_chat(checkpoint: Path, tokens: dict[str, Any]) -> ChatSpec | None:
    """The compiled form of a checkpoint's chat template.

    Args:
        checkpoint: holds the template and the tokenizer's config.
        tokens: its special tokens, of `describe_tokens`.

    Returns:
        None where there is no template, or none of its conversations can be told in plain data.

    Raises:
        ExportError: the template or the tokenizer's config can't be read, or the engine could not
            render it: it is no Jinja template, or does more than a template may.
    """
    file, config = checkpoint / TEMPLATE, checkpoint / TOKENIZER_CONFIG
    if not file.is_file():
        return None
    try:
        template = read_chat_template(
            file, config if config.is_file() else None, tokens["bos_token"], tokens["eos_token"]
        )
        template.prove()
    except BundleError as error:
        named = "" if str(checkpoint) in error.problem else f"{file}: "
        raise ExportError(f"{named}{error.problem}", "correct it or take it away") from error
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(f"{file} can't be read: {reason}", "check its rights") from error
    return compile_template(template)


def compile_template(template: ChatTemplate) -> ChatSpec | None:
    """The compiled form of a chat template.

    Args:
        template: any; what it raises, and what it does without an end, only makes the answer None.

    Returns:
        None where no plain data renders exactly what the template does, which includes every
        template that knows the date or rolls dice.
    """
    if UNSTEADY.search(template.source):
        return None
    deadline = time.monotonic() + MOST_SECONDS

    def render(messages: Sequence[Message], prompt: bool) -> str | None:
        if time.monotonic() > deadline:
            raise _TooLongError
        try:
            return template.render(messages, prompt)
        except EngineError:
            return None

    try:
        for candidate in _candidates(render):
            spec = _tune(candidate, render)
            proof = make_conversations(template.source, spec.takes)
            if all(
                agree(spec, messages, prompt, render(messages, prompt))
                for messages in proof
                for prompt in (False, True)
            ):
                return spec if _is_small_text(spec) else None
    except _TooLongError:
        pass
    return None


def _is_small_text(spec: ChatSpec) -> bool:
    text = json.dumps(dataclasses.asdict(spec), ensure_ascii=False)
    halves = any("\ud800" <= letter <= "\udfff" for letter in text)  # of characters: no UTF-8
    return not halves and len(text) <= MOST_CHARACTERS


def _candidates(render: Render) -> Iterator[ChatSpec]:
    """Compiled forms that the template may have, the least restricted first."""
    user = {"role": USER, "content": "a"}
    system = [{"role": SYSTEM, "content": text} for text in ("Sentinel", "kQ7")]
    shown = len({render([message, user], False) for message in system}) > 1
    roles = ROLES if shown else (USER, ASSISTANT)
    for order, by_ends in itertools.product(ORDERS, (True, False)):
        if (order, by_ends) == ("alternating", False) and roles == ROLES:
            yield from _fold(render)
        spec = _assemble(render, order, roles, by_ends)
        if spec is not None:
            yield spec


def _cut(render: Render, roles: Sequence[str], prompt: bool) -> tuple[list[str], list[str]] | None:
    """Renders a message of each role.

    Returns:
        The roles in the order in which their contents come out, and the texts around them; None
        where the template refuses, or shows one twice or not at all.
    """
    contents = [f"Sentinel{place}kQ7" for place in range(len(roles))]
    text = render(
        [{"role": role, "content": mark} for role, mark in zip(roles, contents, strict=True)],
        prompt,
    )
    if text is None or any(text.count(mark) != 1 for mark in contents):
        return None
    places = sorted((text.index(mark), place) for place, mark in enumerate(contents))
    pieces = re.split("|".join(contents), text)
    return [roles[place] for _, place in places], pieces


@dataclass
class _Found:
    """What stands before the first content, between two, and after the last."""

    first: dict[str, str] = field(default_factory=dict)
    between: dict[tuple[str, str], str] = field(default_factory=dict)
    last: dict[tuple[str, bool], str] = field(default_factory=dict)

    def add(self, roles: Sequence[str], pieces: Sequence[str], prompt: bool) -> bool:
        """False where it contradicts what was found before."""
        pairs = list(itertools.pairwise(roles))
        return (
            self.first.setdefault(roles[0], pieces[0]) == pieces[0]
            and all(
                self.between.setdefault(pair, piece) == piece
                for pair, piece in zip(pairs, pieces[1:-1], strict=True)
            )
            and self.last.setdefault((roles[-1], prompt), pieces[-1]) == pieces[-1]
        )


def _sequences(order: str, roles: Sequence[str]) -> list[tuple[str, ...]]:
    """Short conversations in which everything that the order allows meets."""
    if order == "alternating":
        talks: list[tuple[str, ...]] = [(USER,), (USER, ASSISTANT), (USER, ASSISTANT, USER)]
        return talks + [(SYSTEM, *talk) for talk in talks if SYSTEM in roles]
    pairs = list(itertools.product(roles, repeat=2))
    if order == "system_first":
        pairs = [pair for pair in pairs if pair[1] != SYSTEM]
    return [*((role,) for role in roles), *pairs]


def _assemble(render: Render, order: str, roles: Sequence[str], by_ends: bool) -> ChatSpec | None:
    """The pieces of every role; None where the template does not come apart into such.

    `by_ends`: what ends a message is what ends the conversation, as far as that goes.
    """
    found = _Found()
    for talk in _sequences(order, roles):
        cuts = [(_cut(render, talk, prompt), prompt) for prompt in (False, True)]
        if all(cut is None for cut, _ in cuts) and talk != (SYSTEM,):
            return None
        for cut, prompt in cuts:
            if cut and not (cut[0] == list(talk) and found.add(talk, cut[1], prompt)):
                return None
    split = _split(found, by_ends)
    if split is None:
        return None
    before, after = split
    opening = _find_opening(found, before)
    if opening is None:
        return None
    made = {
        role: RoleSpec(
            before=before[role],
            strip="none",
            after=after[role],
            last=found.last.get((role, False)),
            answer=found.last.get((role, True)),
            skip_empty=False,
        )
        for role in roles
    }
    return ChatSpec(*opening, order=order, roles=made, fold=None)


def _split(found: _Found, by_ends: bool) -> tuple[dict[str, str], dict[str, str]] | None:
    """What stands before and after the contents, from what stands between them.

    Where the cut between two messages falls is a matter of taste as long as it is one cut: moving
    the end of every `after` to the beginning of every `before` changes no text.
    """
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for (left, right), piece in found.between.items():
        texts = [text for (role, _), text in found.between.items() if role == left]
        if by_ends:
            texts += [text for (role, _), text in found.last.items() if role == left]
        rest = piece[len(_common_start(texts).rstrip(OPENING)) :]
        if len(rest) >= len(before.get(right, "")):
            before[right] = rest
    for (left, right), piece in found.between.items():
        if not piece.endswith(before[right]):
            return None
        cut = piece[: len(piece) - len(before[right])]
        if after.setdefault(left, cut) != cut:
            return None
    return before, after


def _common_start(texts: Sequence[str]) -> str:
    least, most = min(texts), max(texts)  # what these two have in common, all between them have
    length = next(
        (place for place, letter in enumerate(least) if letter != most[place]), len(least)
    )
    return least[:length]


def _find_opening(found: _Found, before: dict[str, str]) -> tuple[str, str] | None:
    """What stands before everything, and what after it where no system message is first.

    Fills in `before` of a system message that only stands first.
    """
    openings = set()
    for role, text in found.first.items():
        if role != SYSTEM:
            if not text.endswith(before[role]):
                return None
            openings.add(text[: len(text) - len(before[role])])
    if len(openings) != 1:
        return None
    opening = openings.pop()
    first = found.first.get(SYSTEM)
    if first is None:
        return opening, ""
    begin = _common_start([first, opening])
    if SYSTEM in before:
        if not first.endswith(before[SYSTEM]):
            return None
        begin = first[: len(first) - len(before[SYSTEM])]
    elif begin != opening:
        begin = begin.rstrip(OPENING)
    before[SYSTEM] = first[len(begin) :]
    return (begin, opening[len(begin) :]) if opening.startswith(begin) else None


def _fold(render: Render) -> Iterator[ChatSpec]:
    """The template with its system message as a part of a user's, into which it may go."""
    plain = _assemble(render, "alternating", (USER, ASSISTANT), True)
    cut = _cut(render, (SYSTEM, USER, ASSISTANT, USER), False)
    if plain is None or cut is None:
        return
    roles, pieces = cut
    place = roles.index(SYSTEM)
    user, assistant = plain.roles[USER], plain.roles[ASSISTANT]
    start = plain.begin + user.before if place == 0 else assistant.after + user.before
    if place in (0, 2) and pieces[place].startswith(start):
        yield replace(
            plain,
            fold=FoldSpec(
                into=FOLDS[0] if place == 0 else FOLDS[1],
                before=pieces[place][len(start) :],
                strip="none",
                after=pieces[place + 1],
                skip_empty=False,
                joined=False,
            ),
        )


def _tune(spec: ChatSpec, render: Render) -> ChatSpec:
    """Chooses what is stripped and what is left out, by contents that show it."""
    ends = {
        SYSTEM: [[(SYSTEM, text), (USER, "a")] for text in (PADDED, "")],
        USER: [[(USER, text), (ASSISTANT, "a")] for text in (PADDED, "")],
        ASSISTANT: [[(USER, "a"), (ASSISTANT, text)] for text in (PADDED, "")],
    }
    flags = (False, True)
    for name in spec.roles:
        options = [
            replace(
                spec,
                roles={**spec.roles, name: replace(spec.roles[name], strip=strip, skip_empty=skip)},
            )
            for skip, strip in itertools.product(flags, STRIPS)
        ]
        spec = _choose(options, ends[name], render)
    if spec.fold is not None:
        shown = [*ends[SYSTEM], [(SYSTEM, "a"), (USER, " ")], [(SYSTEM, PADDED), (USER, " ")]]
        options = [
            replace(spec, fold=replace(spec.fold, joined=joined, skip_empty=skip, strip=strip))
            for joined, skip, strip in itertools.product(flags, flags, STRIPS)
        ]
        spec = _choose(options, shown, render)
    return spec


def _choose(
    options: list[ChatSpec], talks: list[list[tuple[str, str]]], render: Render
) -> ChatSpec:
    """The first that renders them as the template does; the proof tells if there was none."""
    shown = [[{"role": role, "content": text} for role, text in talk] for talk in talks]
    texts = [render(messages, False) for messages in shown]

    def agrees(spec: ChatSpec) -> bool:
        try:
            return [render_compiled(spec, messages, False) for messages in shown] == texts
        except EngineError:
            return False

    return next((spec for spec in options if agrees(spec)), options[0])
