from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Engine, EngineError
from runtime.bundle.reader import read_manifest, write_manifest
from tests.support.tokenizer_kinds import byte_level, sentence_piece

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
    assert decoder.cache.lengths[0] == 53  # the last token is fed with the next turn
    session.generate([6], max_new_tokens=1)
    assert session._decoder is decoder
    assert decoder.cache.lengths[0] == 55


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


def test_session_is_not_reset_while_it_answers(engine: Engine) -> None:
    session = engine.session()
    stream = session.stream([5, 6, 7], max_new_tokens=4)
    first = next(stream)
    with pytest.raises(EngineError, match="can't be reset while it answers; end its stream first"):
        session.reset()
    rest = list(stream)
    assert session.tokens == [5, 6, 7, *(one.token for one in (first, *rest))]
    session.reset()
    assert session.tokens == []


def test_session_reads_a_prompt_again_after_another_turn_of_the_same_length(engine: Engine) -> None:
    session = engine.session()
    session.generate([5, 6, 7], max_new_tokens=2)
    waiting = session.stream([8], max_new_tokens=2)
    session.reset()
    other = session.generate([9, 6, 7], max_new_tokens=2)
    list(waiting)
    assert session.tokens[:6] == [9, 6, 7, *other.tokens, 8]


def test_session_holds_a_chat_or_plain_text(engine: Engine) -> None:
    session = engine.session(1)
    prompts: dict[bool, Any] = {False: [5, 6], True: "Hi"}
    kinds = {False: "plain text", True: "a chat"}
    for chat in (False, True):
        session.reset()
        session.generate(prompts[chat], max_new_tokens=2, chat=chat)
        held, messages = list(session.tokens), list(session._messages)
        with pytest.raises(EngineError) as caught:
            session.stream(prompts[not chat], max_new_tokens=2, chat=not chat)
        assert caught.value.problem == (
            f"this session holds {kinds[chat]}, and the turn is {kinds[not chat]}"
        )
        assert caught.value.cure == (f"make the turn {kinds[chat]} too, or reset the session first")
        assert (session.tokens, session._messages) == (held, messages)
        session.generate(prompts[chat], max_new_tokens=2, chat=chat)
        assert session.tokens[: len(held)] == held


def test_session_stream_read_again_is_refused_where_another_kind_came_before(
    engine: Engine,
) -> None:
    session = engine.session(1)
    waiting = session.stream("Hi", max_new_tokens=2, chat=True)
    session.generate([5, 6], max_new_tokens=2)
    with pytest.raises(EngineError, match="holds plain text, and the turn is a chat"):
        next(waiting)


def test_session_goes_on_after_a_dropped_stream(engine: Engine) -> None:
    session = engine.session()
    stream = session.stream([5, 6], max_new_tokens=9)
    token = next(stream).token
    stream.close()  # type: ignore[attr-defined]
    assert session.tokens == [5, 6, token]
    whole = engine.generate([5, 6, token, 7], max_new_tokens=3)
    assert session.generate([7], max_new_tokens=3).tokens == whole.tokens


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


CHATML = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SPEAKERS = {
    "llama": sentence_piece("llama", fallback=False),
    "metaspace first": sentence_piece("first", fallback=False),
    "metaspace always": sentence_piece("always", fallback=False),
    "metaspace never": sentence_piece("never", fallback=False),
    "byte-level with a prefix": byte_level(prefix=True, merged=False),
    "byte-level": byte_level(merged=False),
}


@pytest.fixture(params=SPEAKERS)
def speaker(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path) -> Iterator[Engine]:
    """An engine whose tokenizer is another; its vocabulary is at least as large as the model's."""
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, path)
    core = SPEAKERS[request.param]()
    size = read_manifest(path).model.vocab_size
    core.add_tokens([f"[{number}]" for number in range(core.get_vocab_size(), size)])
    core.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(CHATML)
    fields = read_manifest(path).to_json()
    fields["tokenizer"] |= {"bos_token": None, "eos_token": None, "bos_token_id": None}
    fields["tokenizer"] |= {"eos_token_ids": [], "pad_token_id": None, "prefix_token_ids": []}
    write_manifest(path, **fields)
    with Engine.open(path, threads=1) as opened:
        yield opened


def test_a_chat_of_every_tokenizer_feeds_only_what_is_new(speaker: Engine) -> None:
    """Where the model's answer is what the tokenizer would write, nothing is fed twice."""
    session = speaker.session(2)
    session.generate("the cat sat", max_new_tokens=4, chat=True)
    decoder = session._decoder
    assert decoder is not None
    for turn in ("the cat", "sat at the cat", " the"):
        held, slots = list(session.tokens), decoder.cache.lengths[0]
        answer = session.generate(turn, max_new_tokens=4, chat=True)
        assert session._decoder is decoder, "the chat was fed again"
        assert session.tokens[: len(held)] == held
        fed = session.tokens[len(held) : -len(answer.tokens)]
        assert decoder.cache.lengths[0] == slots + 1 + len(fed) + len(answer.tokens) - 1
        # What was fed says what the whole chat, encoded afresh, says, to the character.
        said = speaker.codec.decode(session.tokens[: len(held) + len(fed)], False)
        chat = speaker.chat_template().render(session._messages[:-1])
        assert said == speaker.codec.decode(speaker.codec.encode(chat, first=False), False)


def test_text_continued_by_a_session_is_one_text(speaker: Engine) -> None:
    session = speaker.session(1)
    answer = session.generate("the cat", max_new_tokens=3)
    more = session.generate(" sat", max_new_tokens=3)
    whole = speaker.detokenize(session.tokens)
    assert whole == f"{speaker.detokenize(speaker.tokenize('the cat'))}{answer.text} sat{more.text}"
