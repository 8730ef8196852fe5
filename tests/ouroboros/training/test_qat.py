"""Training for integer weights: the model trained is the model stored."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from export.quantize.model import Quantization, quantize_model
from ouroboros import load_checkpoint
from ouroboros.errors import TrainingError
from ouroboros.model.rounding import Rounding
from ouroboros.training.qat import Rounded, round_model, rounded_once

IDS = torch.arange(10, 34).reshape(2, 12)


def test_rounded_model_computes_what_the_export_stores(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    stored = copy.deepcopy(model)
    quantize_model(stored, Quantization(4, symmetric=False, sensitive_bits=4))
    # The Controller and the bases are floats in training; stored they are float16.
    model.recurrent.controller.load_state_dict(stored.recurrent.controller.state_dict())
    pairs = zip(model.recurrent.projections(), stored.recurrent.projections(), strict=True)
    for own, rounded_layer in pairs:
        for name, projection in rounded_layer.items():
            own[name].lora_a.copy_(projection.lora_a)
            own[name].lora_b.copy_(projection.lora_b)
    model.mark_trainable("full", "full")
    floats = model(IDS, depth=3).logits
    rounded = round_model(model, Rounding(4, symmetric=False))
    assert rounded.trained
    assert rounded.frozen
    with torch.no_grad(), rounded_once():
        found, expected = model(IDS, depth=3).logits, stored(IDS, depth=3).logits
    assert torch.equal(found, expected)
    assert not torch.allclose(found, floats, atol=1e-2)


def test_floats_come_back_and_the_config_tells(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    model.mark_trainable("full")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounding = Rounding(4, 32, False)
    rounded = round_model(model, rounding)
    rounded.restore()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.config.qat == {"bits": 4, "block": 32, "symmetric": False}
    assert model.lm_head.weight is model.embed_tokens.weight


def test_gradients_pass_through_the_rounding(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    model.mark_trainable("full")
    twin = copy.deepcopy(model)
    rounding = Rounding(4, 32, False)
    for linear in (m for m in twin.modules() if isinstance(m, torch.nn.Linear)):
        if linear not in twin.recurrent.controller.modules():
            with torch.no_grad():
                linear.weight.copy_(rounding.nearest(linear.weight))
    round_model(model, rounding)
    for one in (model, twin):
        with rounded_once():
            one(IDS, labels=IDS, depth=2, use_cache=False).loss.backward()
    weight = model.coda[0].mlp.down_proj.parametrizations["weight"].original
    assert torch.equal(weight.grad, twin.coda[0].mlp.down_proj.weight.grad)
    gate = model.recurrent.gate.proj.parametrizations["weight"].original
    assert torch.equal(gate.grad, twin.recurrent.gate.proj.weight.grad)


def test_a_weight_is_rounded_once_for_all_steps(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    model.mark_trainable("frozen", "full")
    rounded = round_model(model, Rounding(4))
    calls: list[int] = []
    forward = Rounded.forward

    def count(self: Rounded, weight: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(self, weight)

    monkeypatch.setattr(Rounded, "forward", count)
    with rounded_once():
        model(IDS, depth=4, use_cache=False)
    assert len(calls) == len(rounded.trained)


def test_a_block_that_does_not_fit_names_those_that_do(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    with pytest.raises(TrainingError, match=r"--qat-block=128 does not cut \d+ inputs.*one of 32"):
        round_model(model, Rounding(4, 128))
