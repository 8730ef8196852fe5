"""Greedy tokens of an engine against PyTorch's: where they part, is it a tie?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from demo.tokens import compare, summarise

PROMPT, TOKENS = [7, 8], [3, 1, 2]


class Subject:
    """Stands for a model and for an engine; both continue the prompt with what `logits` prefer."""

    def __init__(self, logits: Any, tokens: list[int]) -> None:
        self.given = np.asarray(logits, np.float32)
        self.tokens = tokens

    def tokenize(self, text: str) -> list[int]:
        return PROMPT

    def generate(self, ids: Any, **options: Any) -> Any:
        if isinstance(ids, torch.Tensor):
            return torch.tensor([[*PROMPT, *self.tokens]])
        return SimpleNamespace(tokens=self.tokens)

    def logits(self, ids: Any, depth: int) -> Any:
        assert ids == [*PROMPT, *TOKENS]
        return self.given

    def __call__(self, input_ids: Any, depth: int, use_cache: bool) -> Any:
        return SimpleNamespace(logits=torch.from_numpy(self.given)[None])


def logits(second: float) -> np.ndarray:
    """Of five positions; the fourth, before the last token, prefers 2 to 0 by `second`."""
    found = np.zeros((5, 9))
    found[1, 3] = found[2, 1] = 5
    found[3, [2, 0]] = [5 + second, 5]
    return found


@pytest.mark.parametrize(
    ("reference", "found", "ties", "different"),
    [
        (2e-5, -1e-5, 1, 0),  # two logits as close as the error
        (1.0, -1.0, 0, 1),  # so they are here, but of an engine that is wrong
        (2e-5, 2e-5, 0, 1),  # the sequences part, though nothing differs when fed the same
        (2e-5, float("nan"), 0, 1),
    ],
)
def test_sequences_that_part(reference: float, found: float, ties: int, different: int) -> None:
    model = Subject(logits(reference), TOKENS)
    row = compare(model, Subject(logits(found), [3, 1, 0]), "a prompt", 4, 3)
    assert (row.tokens, row.ties, row.different) == (3, ties, different)


def test_sequences_that_agree_are_not_looked_at() -> None:
    model = Subject(logits(1.0), TOKENS)
    row = compare(model, Subject(np.nan, TOKENS), "a prompt", 4, 3)
    assert (row.ties, row.different, row.first_divergence) == (0, 0, None)
    assert summarise([row])["equal"] is True
