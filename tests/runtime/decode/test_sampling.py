"""Choosing tokens: the rules one by one, on small logits and against the vectors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from runtime.bundle.manifest import SamplingSpec
from runtime.decode.options import MAX_SEED, Changes, Options, check_options
from runtime.decode.philox import philox, uniform
from runtime.decode.sampling import Sampler, largest
from runtime.errors import EngineError

DEFAULTS = SamplingSpec(0.0, 0, 1.0, 0.0, 1.0)
LOGITS = np.log(np.array([0.1, 0.4, 0.3, 0.15, 0.05], np.float32))


def sampler(prompt: tuple[int, ...] = (), **options: Any) -> Sampler:
    return Sampler(check_options(Options(**{"seed": 0, **options}), DEFAULTS), prompt)


def shares(draws: int = 4000, **options: Any) -> np.ndarray:
    one = sampler(**options)
    tokens = [one.choose(LOGITS) for _ in range(draws)]
    return np.bincount(tokens, minlength=LOGITS.size) / draws


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_its_authors_answers(counter: Any, key: Any, words: Any) -> None:
    """Source: Random123 1.14, tests/kat_vectors, philox4x32 10."""
    assert philox(counter, key) == words


def test_uniform_is_uniform_and_of_its_number_alone() -> None:
    draws = np.array([uniform(5, number) for number in range(20_000)])
    assert 0 <= draws.min() < draws.max() < 1
    # five standard errors: 0.2887 / sqrt(20,000) each
    assert abs(draws.mean() - 0.5) < 0.0103
    counts = np.histogram(draws, 16, (0, 1))[0]
    assert ((counts - 1250) ** 2 / 1250).sum() < 45  # chi squared, 15 degrees: p about 1e-4
    assert uniform(5, 7) == draws[7]
    assert len({uniform(seed, 0) for seed in (0, 1, 2**32, MAX_SEED)}) == 4


def test_greedy_takes_the_best_and_the_first_of_equals() -> None:
    assert sampler().choose(LOGITS) == 1
    assert sampler().choose(np.zeros(9, np.float32)) == 0
    assert sampler(temperature=5.0, top_k=1).choose(LOGITS) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-308])
def test_tiny_temperature_is_greedy_without_a_warning(temperature: float) -> None:
    for rest in ({}, {"top_k": 3, "top_p": 0.9}, {"min_p": 0.1}):
        assert sampler(temperature=temperature, **rest).choose(LOGITS) == 1  # warnings are errors


def test_temperature_matches_the_softmax() -> None:
    # three standard errors of 4,000 draws at p = 0.5 are 0.024
    np.testing.assert_allclose(shares(temperature=1.0), np.exp(LOGITS), atol=0.024)
    squared = np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum()
    np.testing.assert_allclose(shares(temperature=0.5), squared, atol=0.024)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.69}, {1, 2}),  # 0.4 + 0.3 reaches it
        ({"top_p": 0.71}, {1, 2, 3}),
        ({"top_p": 1e-9}, {1}),
        ({"top_k": 2, "top_p": 0.5}, {1}),  # of what top-k kept: 0.4 / 0.7 reaches it
        ({"min_p": 0.7}, {1, 2}),  # 0.3 / 0.4
        ({"min_p": 1.0}, {1}),
        ({"min_p": 0.2, "top_k": 4}, {0, 1, 2, 3}),
    ],
)
def test_filters_keep_the_right_tokens(options: dict[str, Any], kept: set[int]) -> None:
    found = shares(400, temperature=1.0, **options)
    assert set(np.flatnonzero(found).tolist()) == kept


def test_top_p_over_a_flat_vocabulary() -> None:
    flat = np.zeros(5000, np.float32)
    tokens = {sampler(temperature=1.0, top_p=0.9, seed=s).choose(flat) for s in range(300)}
    assert max(tokens) < 4501
    assert len(tokens) > 250


def test_largest_breaks_ties_by_the_lower_id() -> None:
    weights = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0])
    for count in range(1, 7):
        assert largest(weights, count).tolist() == [1, 3, 2, 4, 5, 0][:count]


def test_repetition_penalty_is_hugging_faces() -> None:
    torch = pytest.importorskip("torch")
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    prompt, penalty = (3, 7, int(logits.argmax()), 3), 1.7
    process = RepetitionPenaltyLogitsProcessor(penalty)
    one, ids = sampler(prompt, repetition_penalty=penalty), list(prompt)
    for _ in range(8):
        expected = process(torch.tensor([ids]), torch.from_numpy(logits[None].copy()))
        token = one.choose(logits)
        assert token == int(expected.argmax())
        ids.append(token)
    assert len(set(ids[4:])) > 1


def test_a_penalty_that_makes_logits_infinite_is_refused() -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    for options in ({}, {"temperature": 1.0, "min_p": 0.1}, {"temperature": 1.0}):
        one = sampler((2,), repetition_penalty=1e-308, **options)
        with pytest.raises(EngineError, match="=1e-308 makes logits infinite; give one nearer"):
            one.choose(logits)


def test_seed_repeats_and_each_row_draws_as_if_alone() -> None:
    logits = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    one, two = (sampler(temperature=1.0, seed=7) for _ in range(2))
    first = [one.choose(logits) for _ in range(20)]
    assert first == [two.choose(logits) for _ in range(20)]
    assert first != [sampler(temperature=1.0, seed=8).choose(logits) for _ in range(20)]


def test_logprobs_are_of_the_models_own_softmax() -> None:
    one = sampler((1,), temperature=2.0, repetition_penalty=3.0, logprobs=2)
    found = one.describe(LOGITS, 4)
    assert found is not None
    assert found.token == 4
    assert found.logprob == pytest.approx(np.log(0.05), abs=1e-6)
    assert [token for token, _ in found.best] == [1, 2]
    assert found.best[0][1] == pytest.approx(np.log(0.4), abs=1e-6)
    assert sampler().describe(LOGITS, 4) is None
    none = sampler(logprobs=0).describe(LOGITS, 1)
    assert none is not None
    assert none.best == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    logits = LOGITS.copy()
    logits[3] = bad
    with pytest.raises(EngineError, match="not finite"):
        sampler().choose(logits)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.0},
        {"max_new_tokens": True},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": "many"},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"repetition_penalty": 10**400},
        {"temperature": 10**400},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": "x"},
        {"seed": 1.5},
        {"seed": True},
        {"stop": ("",)},
        {"stop": (1,)},
        {"logprobs": -1},
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(EngineError, match=f"{name}=.* is not allowed; ") as caught:
        check_options(Options(**options), DEFAULTS)
    assert caught.value.cure


def test_a_stop_string_is_text() -> None:
    with pytest.raises(EngineError, match="a stop string is not UTF-8; give text that is UTF-8"):
        check_options(Options(stop=("a", "b\ud83d")), DEFAULTS)


def test_options_take_the_bundles_defaults() -> None:
    defaults = SamplingSpec(0.7, 5, 0.9, 0.1, 1.2)
    found = check_options(Options(top_k=0), defaults)
    assert dataclasses.astuple(found)[1:6] == (0.7, 0, 0.9, 0.1, 1.2)
    assert found.seed is not None
    assert check_options(Options(), defaults).seed != found.seed


def test_numpy_numbers_are_numbers() -> None:
    given = Options(max_new_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.uint64(7))  # type: ignore[arg-type]
    assert check_options(given, DEFAULTS).seed == 7


def test_changes_are_the_fields_of_options() -> None:
    assert set(Changes.__annotations__) == {field.name for field in dataclasses.fields(Options)}
