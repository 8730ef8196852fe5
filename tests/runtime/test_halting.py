"""depth="auto": every prompt chooses its own depth, and is then what it is at that depth."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Engine
from runtime.decode.decoder import Decoder
from runtime.errors import EngineError
from runtime.measure.loss import score_auto, score_windows
from tests.support.decoding import WatchedBackend, decode

pytestmark = pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")

THRESHOLDS = (0.2, 0.5, 0.8)
NEW = 6


@pytest.fixture(scope="module")
def adaptive(halting_bundle: Path) -> Iterator[Engine]:
    with Engine.open(halting_bundle, backend="cpu", threads=1) as opened:
        yield opened


def prompts(count: int = 8, longest: int = 40) -> list[list[int]]:
    generator = np.random.default_rng(2)
    return [
        generator.integers(3, 200, generator.integers(4, longest)).tolist() for _ in range(count)
    ]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_batch_gives_what_each_prompt_gives_at_the_depth_it_chose(
    adaptive: Engine, threshold: float
) -> None:
    rows = prompts()
    found = adaptive.generate(rows, "auto", halt_threshold=threshold, max_new_tokens=NEW)
    for prompt, one in zip(rows, found, strict=True):
        alone = adaptive.generate(prompt, "auto", halt_threshold=threshold, max_new_tokens=NEW)
        fixed = adaptive.generate(prompt, one.depth, max_new_tokens=NEW)
        assert (alone.tokens, alone.depth) == (one.tokens, one.depth)
        assert (fixed.tokens, fixed.depth) == (one.tokens, one.depth)


def test_depths_differ_and_a_lower_threshold_takes_fewer_steps(adaptive: Engine) -> None:
    rows = prompts(16)
    chosen = [
        [one.depth for one in adaptive.generate(rows, "auto", halt_threshold=t, max_new_tokens=1)]
        for t in THRESHOLDS
    ]
    most = adaptive.manifest.depth.halting
    assert most is not None
    assert all(1 <= depth <= most.max for depths in chosen for depth in depths)
    assert any(len(set(depths)) > 1 for depths in chosen)
    assert sum(chosen[0]) < sum(chosen[1]) < sum(chosen[2])


@pytest.mark.parametrize("way", ["generate", "stream", "session", "score"])
def test_what_is_warned_of_are_depths_that_were_chosen(
    adaptive: Engine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    rows, manifest = prompts(16), adaptive.manifest
    chosen = [one.depth for one in adaptive.generate(rows, "auto", max_new_tokens=1)]
    least, other = min(chosen), max(chosen)
    depth = dataclasses.replace(manifest.depth, trained=(least,))
    changed = dataclasses.replace(manifest, depth=depth)
    monkeypatch.setattr(Engine, "manifest", property(lambda engine: changed))
    monkeypatch.setattr(adaptive, "_warned", set())

    def answer(prompt: list[int]) -> None:
        if way == "generate":
            adaptive.generate(prompt, "auto", max_new_tokens=1)
        elif way == "stream":
            list(adaptive.stream(prompt, "auto", max_new_tokens=1))
        elif way == "session":
            adaptive.session("auto").generate(prompt, max_new_tokens=1)
        else:
            score_auto(adaptive, np.array([[*prompt, 5, 5]]), len(prompt))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answer(rows[chosen.index(least)])
        assert not caught
        for _ in range(2):
            answer(rows[chosen.index(other)])
    assert [str(one.message) for one in caught] == [
        f"depth {other} was never trained (trained: {least}); expect poorer text"
    ]
    assert caught[0].filename == __file__ or way == "score"


def test_no_threshold_is_the_bundle_s(adaptive: Engine) -> None:
    rows = prompts()
    most = adaptive.manifest.depth.halting
    assert most is not None
    found = adaptive.generate(rows, "auto", max_new_tokens=NEW)
    given = adaptive.generate(rows, "auto", halt_threshold=most.threshold, max_new_tokens=NEW)
    assert found == given


def test_a_fixed_depth_is_reported_and_chooses_nothing(adaptive: Engine) -> None:
    assert [one.depth for one in adaptive.generate(prompts(3), [1, 4, 2], max_new_tokens=1)] == [
        1, 4, 2,
    ]  # fmt: skip


def test_a_stream_and_a_session_choose_on_the_first_prompt(adaptive: Engine) -> None:
    first, second = prompts(2)
    whole = adaptive.generate(first, "auto", max_new_tokens=NEW)
    streamed = list(adaptive.stream(first, "auto", max_new_tokens=NEW))
    assert [piece.token for piece in streamed] == whole.tokens
    assert {piece.depth for piece in streamed} == {whole.depth}
    session = adaptive.session("auto")
    assert session.generate(first, max_new_tokens=NEW) == whole
    assert session.depth == whole.depth
    fixed = adaptive.session(whole.depth)
    fixed.generate(first, max_new_tokens=NEW)
    later = session.generate(second, max_new_tokens=NEW)
    assert later == fixed.generate(second, max_new_tokens=NEW)
    assert later.depth == whole.depth


def test_a_session_that_was_reset_chooses_anew(adaptive: Engine) -> None:
    rows = prompts(16)
    depths = [one.depth for one in adaptive.generate(rows, "auto", max_new_tokens=1)]
    other = next(place for place, depth in enumerate(depths) if depth != depths[0])
    session = adaptive.session("auto")
    for place in (0, other):
        assert session.generate(rows[place], max_new_tokens=1).depth == depths[place]
        session.reset()


def test_a_chat_that_starts_over_keeps_its_depth(adaptive: Engine) -> None:
    session = adaptive.session("auto")
    chosen = session.generate("Hello", chat=True, max_new_tokens=2).depth
    session._text, session.tokens = "", [5, *session.tokens]  # the template rewrites the past
    assert session.generate("And you?", chat=True, max_new_tokens=2).depth == chosen


def test_a_prompt_longer_than_a_call_chooses_on_what_the_first_one_holds(
    adaptive: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.decode.decoder.PREFILL_CHUNK", 16)
    rows = [*prompts(6), np.random.default_rng(0).integers(3, 200, 70).tolist()]
    short = adaptive.generate([row[:16] for row in rows], "auto", max_new_tokens=1)
    found = adaptive.generate(rows, "auto", max_new_tokens=NEW)
    assert [one.depth for one in found] == [one.depth for one in short]
    for row, one in zip(rows, found, strict=True):
        assert adaptive.generate(row, one.depth, max_new_tokens=NEW).tokens == one.tokens


def test_decoding_runs_no_more_steps_than_were_chosen(adaptive: Engine) -> None:
    """The loop runs as often as the deepest row, and the cache has slots for no more."""
    watched = WatchedBackend(adaptive._require_open())
    most = adaptive.manifest.depth.halting
    assert most is not None
    decoder = Decoder(watched, adaptive.manifest, [most.max] * 2)
    decoder.prefill(prompts(2), 1e-6)  # every score reaches it
    assert decoder.cache.row_depth.tolist() == [1, 1]
    decoder.step([5, 6])
    assert watched.shapes["past_pool_sum"][1] == 1
    with pytest.raises(EngineError, match="hold tokens already"):
        decoder.prefill([[5], [6]], 0.5)


def test_logits_are_those_of_the_depth_that_was_chosen(adaptive: Engine) -> None:
    rows, backend = prompts(3), adaptive._require_open()
    chosen = Decoder(backend, adaptive.manifest, [4] * 3)
    found = chosen.prefill(rows, 0.5).copy()
    depths = chosen.cache.row_depth.tolist()
    fixed = decode(Decoder(backend, adaptive.manifest, depths), rows, 4)
    np.testing.assert_allclose(found, fixed[0], rtol=1e-4, atol=1e-5)
    again = Decoder(backend, adaptive.manifest, [4] * 3)
    again.prefill(rows, 0.5)
    generator = np.random.default_rng(0)
    for place in range(4):
        step = again.step(generator.integers(3, 200, 3))
        np.testing.assert_allclose(step, fixed[place + 1], rtol=1e-4, atol=1e-5)


def test_a_bundle_without_a_halter_says_what_to_do(engine: Engine) -> None:
    for call in (
        lambda: engine.generate("Hello", "auto"),
        lambda: engine.session("auto"),
        lambda: engine.stream("Hello", "auto"),
    ):
        with pytest.raises(EngineError, match=r"no halter.*ouro halter"):
            call()


@pytest.mark.parametrize("threshold", [0, -0.5, 1.5, math.nan, True, "low"])
def test_a_threshold_that_is_not_allowed_is_refused(adaptive: Engine, threshold: Any) -> None:
    with pytest.raises(EngineError, match=r"halt_threshold=.*above 0 and at most 1"):
        adaptive.generate("Hello", "auto", halt_threshold=threshold)


def test_what_has_no_effect_or_no_sense_is_refused(adaptive: Engine) -> None:
    with pytest.raises(EngineError, match="no effect at a fixed depth"):
        adaptive.generate("Hello", 2, halt_threshold=0.5)
    with pytest.raises(EngineError, match="for all of a batch alike"):
        adaptive.generate(["a", "b"], ["auto", 2])  # type: ignore[list-item]
    with pytest.raises(EngineError, match="prompts to generate from"):
        adaptive.logits([5, 6], "auto")  # type: ignore[call-overload]


def test_windows_are_scored_at_the_depths_they_choose(adaptive: Engine) -> None:
    windows = np.random.default_rng(1).integers(3, 200, (6, 24))
    loss, depth = score_auto(adaptive, windows, 12)
    chosen = [
        adaptive.generate(window[:12].tolist(), "auto", max_new_tokens=1).depth
        for window in windows
    ]
    assert depth == pytest.approx(np.mean(chosen))
    alone = [
        score_windows(adaptive, window[None], one, 12)
        for window, one in zip(windows, chosen, strict=True)
    ]
    assert loss == pytest.approx(np.mean(alone), rel=1e-5)
    with pytest.raises(EngineError, match="chosen on a prompt"):
        score_auto(adaptive, windows, 0)
