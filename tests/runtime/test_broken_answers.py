"""Answers that are interrupted or fail: a session keeps what it said, and goes on from there."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Engine, EngineError, Generation, Session
from runtime.decode.decoder import Decoder
from runtime.decode.generation import Row

pytestmark = pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")

PLAIN: tuple[Any, ...] = ([5, 6, 7, 8], [9, 10], [11, 12, 13])
CHAT: tuple[Any, ...] = ("Hello", "And?", "So?")
# Tiny random models are sure of themselves: what they say of other tokens is looked at too.
WILD: dict[str, Any] = {"max_new_tokens": 8, "temperature": 60.0, "seed": 4, "logprobs": 3}
ERRORS = (KeyboardInterrupt, RuntimeError, EngineError)


@contextmanager
def broken(
    owner: type, names: tuple[str, ...], after: int, error: type[BaseException]
) -> Iterator[None]:
    """Lets the call after so many fail at its end, when it has changed what it changes."""
    count = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def call(*given: Any) -> Any:
            nonlocal count
            result = real(*given)
            count += 1
            if count == after + 1:
                raise error("mine")
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(owner, name, wrap(getattr(owner, name)))
        yield


def break_runs(after: int, error: type[BaseException]) -> Any:
    return broken(Decoder, ("prefill", "step"), after, error)


def take(stream: Any, count: int) -> None:
    for _ in range(count):
        next(stream)


def two_turns(engine: Engine, prompts: tuple[Any, ...], taken: int, depth: Any = 2) -> Session:
    """A session whose second answer was dropped after so many pieces; none: never asked for."""
    session = engine.session(depth)
    chat = isinstance(prompts[0], str)
    session.generate(prompts[0], **WILD, chat=chat)
    if taken:
        stream: Any = session.stream(prompts[1], **WILD, chat=chat)
        take(stream, taken)
        stream.close()
    return session


def check_alike(one: Generation, other: Generation) -> None:
    assert dataclasses.replace(one, logprobs=[]) == dataclasses.replace(other, logprobs=[])
    best = [np.array([token.best for token in answer.logprobs]) for answer in (one, other)]
    np.testing.assert_allclose(best[0], best[1], rtol=1e-4, atol=1e-3)


def said(session: Session) -> tuple[Any, ...]:
    return session.tokens, session._messages, session.depth, session._chosen


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("taken", [0, 3])
@pytest.mark.parametrize("prompts", [PLAIN, CHAT], ids=["plain", "chat"])
def test_a_stream_that_fails_leaves_what_a_dropped_one_does(
    engine: Engine, prompts: tuple[Any, ...], taken: int, error: type[BaseException]
) -> None:
    chat = isinstance(prompts[0], str)
    expected, session = two_turns(engine, prompts, taken), two_turns(engine, prompts, 0)
    stream = session.stream(prompts[1], **WILD, chat=chat)
    with break_runs(taken, error), pytest.raises(error):
        take(stream, taken + 1)
    assert list(stream) == []
    assert (said(session), session._text) == (said(expected), expected._text)
    for _ in range(2):
        answers = [one.generate(prompts[2], **WILD, chat=chat) for one in (session, expected)]
        check_alike(*answers)
    assert said(session) == said(expected)


@pytest.mark.parametrize("prompts", [PLAIN, CHAT], ids=["plain", "chat"])
def test_generate_that_fails_changes_nothing(engine: Engine, prompts: tuple[Any, ...]) -> None:
    chat = isinstance(prompts[0], str)
    expected, session = two_turns(engine, prompts, 0), two_turns(engine, prompts, 0)
    asked = iter([False, False, False, True])

    def fail() -> bool:
        if next(asked):
            raise ValueError("mine")
        return False

    for after in range(3):
        with break_runs(after, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            session.generate(prompts[1], **WILD, chat=chat)
        assert said(session) == said(expected)
    with pytest.raises(ValueError, match="mine"):
        session.generate(prompts[1], **WILD, chat=chat, cancel=fail)
    assert said(session) == said(expected)
    answers = [one.generate(prompts[1], **WILD, chat=chat) for one in (session, expected)]
    check_alike(*answers)


@pytest.mark.parametrize("taken", [0, 3])
def test_an_interrupt_inside_a_token_keeps_only_what_was_yielded(
    engine: Engine, taken: int
) -> None:
    expected, session = two_turns(engine, CHAT, taken), two_turns(engine, CHAT, 0)
    stream = session.stream(CHAT[1], **WILD, chat=True)
    with broken(Row, ("take",), taken, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        take(stream, taken + 1)
    assert said(session) == said(expected)
    chat = [*session._messages, {"role": "user", "content": CHAT[2]}]
    answer = session.generate(CHAT[2], **WILD, chat=True)
    # The rest of the interrupted token is in the past; the chat may be written anew without it.
    assert answer.tokens == engine.generate(chat, 2, **WILD, chat=True).tokens
    assert session._messages[:-1] == chat


def test_an_interrupt_behind_any_call_keeps_only_what_was_yielded(engine: Engine) -> None:
    """At calls is where CPython looks for Ctrl-C."""
    for place in itertools.count():
        session = two_turns(engine, PLAIN, 0)
        before, yielded = list(session.tokens), list[int]()
        calls = itertools.count()

        def interrupt(
            frame: Any, event: str, _: Any, calls: Any = calls, place: int = place
        ) -> None:
            caller = {"c_return": frame, "return": frame.f_back}.get(event)
            inside = caller is not None and caller.f_code is Session._speak.__code__
            if inside and next(calls) == place:
                raise KeyboardInterrupt

        stream = session.stream(PLAIN[1], max_new_tokens=3)
        sys.setprofile(interrupt)
        try:
            for piece in stream:
                yielded.append(piece.token or 0)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.setprofile(None)
        assert session.tokens == [*before, *(PLAIN[1] if yielded else ()), *yielded]
    assert place > 3
    assert len(yielded) == 3


def test_a_first_answer_that_fails_leaves_an_empty_session(engine: Engine) -> None:
    session = engine.session(2)
    with break_runs(0, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        session.generate("Hello", **WILD, chat=True)
    assert said(session) == ([], [], 2, True)
    first = session.generate([5, 6], **WILD)  # no chat holds it
    assert first == engine.generate([5, 6], 2, **WILD)


def test_a_chat_that_fails_while_it_starts_over_is_as_before(engine: Engine) -> None:
    session = two_turns(engine, CHAT, 0)
    session._text, session.tokens = "", [5, *session.tokens]  # the template rewrites the past
    before = [list(one) if isinstance(one, list) else one for one in said(session)]
    with break_runs(0, RuntimeError), pytest.raises(RuntimeError, match="mine"):
        session.generate(CHAT[1], **WILD, chat=True)
    assert list(said(session)) == before


def test_a_failed_session_feeds_all_again_and_the_first_prompt_apart(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was fed: a mean stays frozen on it."""
    session = two_turns(engine, PLAIN, 0)
    with break_runs(0, RuntimeError), pytest.raises(RuntimeError, match="mine"):
        session.generate(PLAIN[1], **WILD)
    fed: list[int] = []
    real = Decoder.prefill
    monkeypatch.setattr(
        Decoder,
        "prefill",
        lambda self, rows, *given: fed.append(len(rows[0])) or real(self, rows, *given),
    )
    held = len(session.tokens)
    for _ in range(2):
        session.generate(PLAIN[2], **WILD)
    assert fed == [len(PLAIN[0]), held - len(PLAIN[0]) + len(PLAIN[2]), 1 + len(PLAIN[2])]


@pytest.fixture(scope="module")
def adaptive(halting_bundle: Path) -> Iterator[Engine]:
    with Engine.open(halting_bundle, backend="cpu", threads=1) as opened:
        yield opened


def test_a_depth_that_was_chosen_stays_chosen(adaptive: Engine) -> None:
    session, expected = (two_turns(adaptive, PLAIN, taken, "auto") for taken in (0, 3))
    stream = session.stream(PLAIN[1], **WILD)
    with break_runs(3, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        take(stream, 4)
    assert said(session) == said(expected)
    history = [*session.tokens, *PLAIN[2]]
    answer = session.generate(PLAIN[2], **WILD)
    check_alike(answer, adaptive.generate(history, expected.depth, **WILD))


def test_a_depth_not_chosen_yet_is_chosen_on_the_next_prompt(adaptive: Engine) -> None:
    session = adaptive.session("auto")
    most = session.depth
    with break_runs(0, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        session.generate(PLAIN[0], **WILD)
    assert said(session) == ([], [], most, False)
    for prompt in (list(range(20, 50)), PLAIN[0]):
        whole = adaptive.generate(prompt, "auto", **WILD)
        assert session.generate(prompt, **WILD) == whole
        session.reset()
