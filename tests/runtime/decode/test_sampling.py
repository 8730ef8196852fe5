from __future__ import annotations

import numpy as np
import pytest

from runtime.bundle.manifest import SamplingSpec
from runtime.decode.sampling import Sampling, make_generator, make_sampling, sample
from runtime.errors import EngineError

DEFAULTS = SamplingSpec(0.0, 0, 1.0, 0.0, 1.0)
LOGITS = np.log(np.array([0.1, 0.4, 0.3, 0.15, 0.05], np.float32))


def shares(logits: np.ndarray, sampling: Sampling, draws: int = 4000) -> np.ndarray:
    generator = make_generator(0)
    tokens = [sample(logits, sampling, generator) for _ in range(draws)]
    return np.bincount(tokens, minlength=logits.size) / draws


def test_sample_greedy_takes_the_best_and_the_first_of_equals() -> None:
    generator = make_generator(None)
    assert sample(LOGITS, Sampling(), generator) == 1
    assert sample(np.zeros(9, np.float32), Sampling(), generator) == 0
    assert sample(LOGITS, Sampling(5.0, top_k=1), generator) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-308])
def test_sample_tiny_temperature_is_greedy_without_a_warning(temperature: float) -> None:
    generator = make_generator(0)  # warnings are errors here
    for sampling in (Sampling(temperature), Sampling(temperature, 3, 0.9)):
        assert sample(LOGITS, sampling, generator) == 1


def test_sample_temperature_matches_the_softmax() -> None:
    # three standard errors of 4,000 draws at p = 0.5 are 0.024
    np.testing.assert_allclose(shares(LOGITS, Sampling(1.0)), np.exp(LOGITS), atol=0.024)
    squared = np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum()
    np.testing.assert_allclose(shares(LOGITS, Sampling(0.5)), squared, atol=0.024)


def test_sample_top_k_and_top_p_keep_the_right_tokens() -> None:
    def kept(sampling: Sampling) -> set[int]:
        return set(np.flatnonzero(shares(LOGITS, sampling, 400)).tolist())

    assert kept(Sampling(1.0, top_k=2)) == {1, 2}
    assert kept(Sampling(1.0, top_k=99)) == {0, 1, 2, 3, 4}
    assert kept(Sampling(1.0, top_p=0.69)) == {1, 2}  # 0.4 + 0.3 reaches it
    assert kept(Sampling(1.0, top_p=0.71)) == {1, 2, 3}
    assert kept(Sampling(1.0, top_p=1e-9)) == {1}
    # top-p counts within what top-k kept: 0.4 / 0.7 reaches 0.5
    assert kept(Sampling(1.0, top_k=2, top_p=0.5)) == {1}


def test_sample_top_p_over_a_flat_vocabulary() -> None:
    flat = np.zeros(5000, np.float32)
    tokens = {sample(flat, Sampling(1.0, top_p=0.9), make_generator(s)) for s in range(300)}
    assert max(tokens) < 4501
    assert len(tokens) > 250


def test_sample_seed_repeats() -> None:
    logits = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    one, two = make_generator(7), make_generator(7)
    assert [sample(logits, Sampling(1.0), one) for _ in range(20)] == [
        sample(logits, Sampling(1.0), two) for _ in range(20)
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sample_refuses_what_is_not_finite(bad: float) -> None:
    logits = LOGITS.copy()
    logits[3] = bad
    with pytest.raises(EngineError, match="not finite"):
        sample(logits, Sampling(), make_generator(0))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": None, "top_k": "many"},
    ],
)
def test_make_sampling_refuses(options: dict[str, object]) -> None:
    with pytest.raises(EngineError, match="is not allowed"):
        make_sampling(DEFAULTS, **options)  # type: ignore[arg-type]


def test_make_sampling_takes_the_bundle_defaults() -> None:
    defaults = SamplingSpec(0.7, 5, 0.9, 0.0, 1.0)
    assert make_sampling(defaults) == Sampling(0.7, 5, 0.9)
    assert make_sampling(defaults, temperature=0, top_k=0) == Sampling(0.0, 0, 0.9)


@pytest.mark.parametrize("seed", [-1, "x", 1.5, True])
def test_make_generator_refuses(seed: object) -> None:
    with pytest.raises(EngineError, match="seed"):
        make_generator(seed)  # type: ignore[arg-type]
