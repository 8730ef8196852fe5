"""Recomputation: the same bits with less kept, and frozen weights get no gradient products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.training import tiny_model

DEPTH = 5


def inputs() -> dict[str, Any]:
    ids = torch.randint(2, 28, (2, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids, "depth": DEPTH}


def gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients, and how many bytes the way back needs of the way forward."""
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.state_dict().values()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**inputs()).loss
    kept = sum(size for place, size in sizes.items() if place not in weights)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), found, kept


@pytest.mark.parametrize("coda", ["frozen", "full"])
def test_recomputed_gradients_are_the_same_bits(coda: str) -> None:
    model = tiny_model().train()
    model.mark_trainable(coda, coda)
    loss, expected, kept = gradients(model)
    model.zero_grad()
    model.recompute = True
    again, found, kept_less = gradients(model)
    assert torch.equal(loss, again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert kept_less < kept / 3


def test_generation_is_not_touched() -> None:
    model = tiny_model()
    ids = inputs()["input_ids"]
    wanted = model(ids, depth=2)
    model.recompute = True
    found = model(ids, depth=2)
    assert torch.equal(found.logits, wanted.logits)
    assert found.past_key_values.get_seq_length() == 16


def count_products(model: Any) -> tuple[dict[str, int], int]:
    """Operations of the matrix products: forward by part, and those of the way back."""
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward:
        loss = model(**inputs()).loss
    with backward:
        loss.backward()
    root = type(model).__name__
    counts = {
        name.removeprefix(f"{root}."): sum(n for op, n in found.items() if "mm" in str(op))
        for name, found in forward.get_flop_counts().items()
    }
    return counts, sum(backward.get_flop_counts()["Global"].values())


def test_frozen_weights_get_no_gradient_products() -> None:
    found = {}
    for coda in ("frozen", "full"):
        model = tiny_model().train()
        model.mark_trainable(coda)
        found[coda] = count_products(model)
    parts, frozen = found["frozen"]
    prelude, last = (sum(parts[f"{name}.{i}"] for i in (0, 1)) for name in ("prelude", "coda"))
    # A weight's gradient costs what its product does on the way forward.
    assert found["full"][1] == frozen + last
    # And each input's as much, behind the prelude: no room for the weights of a single layer.
    trained = parts["recurrent.controller"] + parts["recurrent.gate"]
    most = parts["Global"] - prelude + trained
    assert most - last // 2 < frozen <= most
