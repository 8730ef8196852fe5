"""Frozen weights cast once: the same bits under autocast, and their own values afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ouroboros.training.half import halve_frozen
from tests.support.training import tiny_model


def gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.randint(2, 28, (2, 16), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids, depth=3).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("coda", ["frozen", "full"])
def test_results_are_the_same_bits_and_weights_come_back(coda: str) -> None:
    model = tiny_model().train()
    model.mark_trainable(coda)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss, expected = gradients(model)
    halved = halve_frozen([model.prelude, model.recurrent, model.coda])
    types = {name: value.dtype for name, value in model.state_dict().items()}
    (layer,) = model.recurrent.layers
    linear = layer.mlp.up_proj
    assert {linear.weight.dtype, linear.lora_a.dtype, linear.lora_b.dtype} == {torch.bfloat16}
    assert types["embed_tokens.weight"] == types["norm.weight"] == torch.float32
    assert (types["coda.0.mlp.up_proj.weight"] == torch.bfloat16) == (coda == "frozen")
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    again, found = gradients(model)
    assert torch.equal(loss, again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    halved.restore()
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.dtype == torch.float32 for value in after.values())


def test_bases_that_lie_in_a_larger_tensor_leave_it() -> None:
    """As a conversion is loaded; torch.compile takes no half of what is a view of floats."""
    model = tiny_model()
    linear = model.recurrent.layers[0].mlp.up_proj
    before = linear.lora_a.clone()
    linear.lora_a = linear.lora_a.repeat(2, 1, 1)[1:]
    halved = halve_frozen([model.recurrent])
    assert linear.lora_a._base is None
    assert torch.equal(linear.lora_a, before.bfloat16())
    halved.restore()
    assert torch.equal(linear.lora_a, before)
