"""A session of `mean` pooling: the mean is of the first prompt, also where all is fed again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runtime import Engine
from runtime.decode.decoder import Decoder
from runtime.decode.generation import Generation
from tests.conformance.bundles import bundle_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*never trained:UserWarning"),
]

PROMPTS = ([5, 6, 7, 8], [9, 10], [11, 12, 13])
WILD: dict[str, Any] = {"max_new_tokens": 8, "temperature": 60.0, "seed": 4, "logprobs": 3}


@pytest.fixture(scope="module")
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    path = bundle_of("qwen3-int4", request, tmp_path_factory)
    with Engine.open(path, backend="cpu", threads=1) as opened:
        assert opened.manifest.model.pooling == "mean"
        yield opened


def best(answer: Generation) -> Any:
    """Log-probabilities of the best tokens, [tokens, 3]."""
    return np.array([[logprob for _, logprob in one.best] for one in answer.logprobs])


@pytest.mark.parametrize("depth", [3, "auto"])
def test_a_session_that_failed_keeps_the_mean_of_its_first_prompt(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, depth: int | str
) -> None:
    sessions = [engine.session(depth) for _ in range(2)]  # type: ignore[arg-type]
    for number, session in enumerate(sessions):
        session.generate(PROMPTS[0], **WILD)
        stream = session.stream(PROMPTS[1], **WILD)
        for _ in range(3):
            next(stream)
        if number:
            stream.close()  # type: ignore[attr-defined]
            continue
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "step", lambda self, tokens: interrupt())
            with pytest.raises(KeyboardInterrupt):
                next(stream)
    assert sessions[0].tokens == sessions[1].tokens
    failed, dropped = (one.generate(PROMPTS[2], **WILD) for one in sessions)
    assert failed.tokens == dropped.tokens
    np.testing.assert_allclose(best(failed), best(dropped), atol=1e-3)
    history = sessions[0].tokens[: -len(failed.tokens)]
    at_once = engine.generate(history, sessions[0].depth, **WILD)  # its mean is of all
    assert np.abs(best(at_once)[0] - best(dropped)[0]).max() > 1e-2


def interrupt() -> None:
    raise KeyboardInterrupt
