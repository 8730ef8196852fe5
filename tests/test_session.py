from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime import Engine, EngineError

pytestmark = pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")


def test_session_turns_equal_one_shot(engine: Engine) -> None:
    session = engine.session(depth=3)
    generator = np.random.default_rng(0)
    history: list[int] = []
    for turn in range(4):
        ids = generator.integers(3, engine.manifest.model.vocab_size, 5 + 20 * turn).tolist()
        answer = session.generate(ids, max_new_tokens=10)
        history += ids
        expected = engine.generate(history, depth=3, max_new_tokens=10)
        assert answer == expected
        history += answer.tokens
        assert session.tokens == history


def test_session_keeps_its_cache(engine: Engine) -> None:
    session = engine.session(1)
    session.generate([5] * 50, max_new_tokens=4)
    decoder = session._decoder
    assert decoder is not None
    assert decoder.cache.length == 53  # the last token is fed with the next turn
    session.generate([6], max_new_tokens=1)
    assert session._decoder is decoder
    assert decoder.cache.length == 55


def test_session_stream_left_early_goes_on(engine: Engine) -> None:
    session = engine.session(2)
    stream = session.stream([5, 6, 7], max_new_tokens=20)
    taken = [next(stream).token for _ in range(4)]
    with pytest.raises(EngineError, match="one request at a time"):
        session.generate([1])
    stream.close()  # type: ignore[attr-defined]
    assert session.tokens == [5, 6, 7, *taken]
    after = session.generate([8], max_new_tokens=5)
    assert after == engine.generate([5, 6, 7, *taken, 8], depth=2, max_new_tokens=5)


def test_session_streams_opened_together_are_checked_when_they_start(engine: Engine) -> None:
    most = engine.manifest.model.max_position_embeddings
    session = engine.session(1)
    new = most // 2
    options: dict[str, Any] = {"max_new_tokens": new, "temperature": 1.0, "seed": 1}
    first, second = (session.stream([5] * 100, **options) for _ in range(2))
    told = len(list(first))
    with pytest.raises(EngineError, match=f"pass the model's {most} positions"):
        list(second)
    assert len(session.tokens) == 100 + told <= most
    again = session.generate([6], max_new_tokens=2)  # refused, it changed nothing
    assert again.prompt_tokens == 101 + told


def test_session_stream_reads_its_prompt_when_it_starts(engine: Engine) -> None:
    session, other = engine.session(2), engine.session(2)
    first, second = (session.stream("Hi", max_new_tokens=5, chat=True) for _ in range(2))
    answers = ["".join(map(str, stream)) for stream in (first, second)]
    expected = [other.generate("Hi", max_new_tokens=5, chat=True).text for _ in range(2)]
    assert answers == expected
    assert session.tokens == other.tokens


def test_session_stream_never_started_changes_nothing(engine: Engine) -> None:
    session = engine.session(2)
    session.generate("Hi", max_new_tokens=5, chat=True)
    before = list(session.tokens)
    # Another first message: the template rewrites the chat, which starts over.
    session._messages = [{"role": "user", "content": "Ho"}]
    session.stream("Go on", max_new_tokens=5, chat=True)
    assert session.tokens == before


def test_session_bad_request_changes_nothing(engine: Engine) -> None:
    session = engine.session()
    first = session.generate([5, 6], max_new_tokens=3)
    for bad in ([], [-1], None):
        with pytest.raises(EngineError):
            session.generate(bad)
    with pytest.raises(EngineError, match="pass the model's"):
        session.generate([5], max_new_tokens=engine.manifest.model.max_position_embeddings)
    assert session.tokens == [5, 6, *first.tokens]
    session.reset()
    assert session.tokens == []
    assert session.generate([5, 6], max_new_tokens=3) == first


def test_session_depth_is_checked(engine: Engine) -> None:
    with pytest.raises(EngineError, match="depth=0"):
        engine.session(0)


def test_session_chat_feeds_only_what_is_new(engine: Engine) -> None:
    if engine.manifest.tokenizer.chat_template is None:
        pytest.skip("the bundle has no chat template")
    session = engine.session(2)
    first = session.generate("Hello", max_new_tokens=5, chat=True)
    assert first == engine.generate("Hello", depth=2, max_new_tokens=5, chat=True)
    held = list(session.tokens)
    session.generate("Go on", max_new_tokens=5, chat=True)
    template = engine.chat_template()
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Go on"},
    ]
    shown = engine.codec.decode(session.tokens[:-5], skip_special_tokens=False)
    if first.finish_reason == "length" and "\ufffd" not in first.text:
        assert session.tokens[: len(held)] == held
        assert shown == template.render(messages)


def test_chat_accepts_messages_and_batches(engine: Engine) -> None:
    if engine.manifest.tokenizer.chat_template is None:
        pytest.skip("the bundle has no chat template")
    one = engine.generate("Hi", chat=True, max_new_tokens=3)
    messages = [{"role": "user", "content": "Hi"}]
    assert engine.generate(messages, chat=True, max_new_tokens=3) == one
    assert engine.generate(["Hi", "Hello"], chat=True, max_new_tokens=3)[0] == one
    with pytest.raises(EngineError, match="message"):
        engine.generate([1, 2], chat=True)
