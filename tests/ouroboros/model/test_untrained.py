"""generate() warns of a depth that was never trained, as an engine does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ouroboros import OuroborosForCausalLM
from runtime.depths import describe_untrained, find_untrained
from tests.support.training import tiny_model

IDS = torch.arange(2, 14).reshape(2, 6)


def warned(model: OuroborosForCausalLM, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.generate(IDS, max_new_tokens=2, do_sample=False, pad_token_id=0, **options)
    told = [one for one in caught if "trained" in str(one.message)]  # none of the libraries' own
    assert [one.filename for one in told] == [__file__] * len(told)
    return [str(one.message) for one in told]


def test_each_untrained_depth_is_warned_of_once() -> None:
    model = tiny_model(trained_depths=[2, 3])
    assert warned(model) == []  # at 3, its own
    assert warned(model, depth=2, num_beams=2) == []
    told = "depth 1, 4 was never trained (trained: 2, 3); expect poorer text"
    assert warned(model, depth=[4, 1]) == [told]
    assert warned(model, depth=1) == []
    told = "depth 5 was never trained (trained: 2, 3); expect poorer text"
    assert warned(model, depth=5) == [told]


def test_a_model_that_was_never_trained_is_warned_of_once() -> None:
    model = tiny_model()
    told = "this model was never trained; expect poor text, or run `ouro train` first"
    assert warned(model) == [told]
    assert warned(model, depth=5) == []


def test_a_depth_that_is_chosen_is_warned_of() -> None:
    model = tiny_model(trained_depths=[6], halter="confidence", halt_depth=6, halt_threshold=1e-6)
    told = "depth 1 was never trained (trained: 6); expect poorer text"
    assert warned(model, depth="auto") == [told]
    assert warned(model, depth="auto") == []


@pytest.mark.parametrize(
    ("depths", "trained", "before", "fresh"),
    [
        ([3, 1, 3], [2], (), [1, 3]), ([3, 1], [2], {3}, [1]), ([2], [2], (), []),
        ([3, 1], [], (), [1, 3]), ([4], [], {3}, []),
    ],
)  # fmt: skip
def test_what_is_warned_of(
    depths: Sequence[int], trained: Sequence[int], before: set[int], fresh: list[int]
) -> None:
    assert find_untrained(depths, trained, before) == fresh
    assert describe_untrained([1, 4], [2]).startswith("depth 1, 4 was never trained (trained: 2)")
