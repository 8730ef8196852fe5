"""Where a model that gives no numbers began to: the first weight, or the first module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ouroboros.training.divergence import divergence, find_origin
from tests.support.training import tiny_model

IDS = torch.arange(2, 18)[None]


def spoil_weight(model: Any) -> None:
    model.coda[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.norm.weight[0] = float("inf")


def make_overflow(model: Any) -> None:
    """Finite weights, a product that is not: of the query in the loop, and all after it."""
    model.recurrent.layers[0].self_attn.q_proj.weight.fill_(1e38)


def make_head_overflow(model: Any) -> None:
    model.norm.weight.fill_(1e38)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (spoil_weight, "the weight coda.1.mlp.up_proj.weight"),
        (make_overflow, "the output of recurrent.layers.0.self_attn.q_proj"),
        (make_head_overflow, "the output of lm_head"),
    ],
)
def test_origin_is_the_first_part(spoil: Callable[[Any], None], expected: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        spoil(model)
    assert not bool(torch.isfinite(model(IDS, depth=2).logits).all())
    assert find_origin(model, lambda: model(IDS, depth=2)) == expected
    assert not model.norm._forward_hooks


def test_healthy_body_leaves_the_head() -> None:
    model = tiny_model()
    assert find_origin(model, lambda: model(IDS, depth=2)) == "the LM head"


def test_error_names_train_step_part_and_cure() -> None:
    error = divergence("the loss is nan", 7, 1e-3, "the output of norm")
    assert str(error) == (
        "the loss is nan at train step 7 (it began in the output of norm); start over in another "
        "folder with a --learning-rate below 0.001"
    )
    assert str(divergence("the loss is nan", 0, 1e-3)) == (
        "the loss is nan before any training; start from another checkpoint"
    )
