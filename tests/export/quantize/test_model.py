"""Choosing integers for weights: exactness, rounding, GPTQ, and what is left in the model."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from export.errors import ExportError
from export.graph.parts import Step
from export.graph.weight_names import joined_weights
from export.layout import stored_half
from export.precision import PRECISIONS
from export.quantize.model import Quantization, choose_integers, quantize_model
from export.quantize.weights import QuantizedWeight, join, pack
from ouroboros import load_checkpoint

WAYS = [Quantization(bits, 32, symmetric) for bits in (4, 8) for symmetric in (True, False)]


@pytest.mark.parametrize("how", WAYS)
def test_rounding_is_within_a_step(how: Quantization) -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    chosen = choose_integers(weight, how, None)
    least, greatest = how.limits
    assert least <= chosen.values.min() <= chosen.values.max() <= greatest
    steps = np.abs(chosen.scales).repeat(32, axis=0)
    error = np.abs(chosen.dequantized() - weight.numpy().T)
    # A zero point is rounded too, and the greatest integer lacks half a step on one side.
    assert (error <= 1.01 * steps).all()
    assert (chosen.zeros is None) == how.symmetric


@pytest.mark.parametrize("how", WAYS)
def test_weights_on_the_grid_are_kept(how: Quantization) -> None:
    least, greatest = how.limits
    generator = torch.Generator().manual_seed(1)
    integers = torch.randint(least, greatest + 1, (8, 64), generator=generator)
    integers[:, 0::32], integers[:, 1::32] = least, greatest
    zero = 0 if how.symmetric else 1 << (how.bits - 1)
    weight = (integers - zero) * 0.25
    chosen = choose_integers(weight, how, None)
    np.testing.assert_array_equal(chosen.dequantized(), weight.numpy().T)


@pytest.mark.parametrize("how", WAYS)
def test_gptq_errs_less_on_what_comes_in(how: Quantization) -> None:
    """The error that counts is of the product with the inputs; GPTQ's is to be clearly smaller."""
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(128, 128, generator=generator)
    inputs = torch.randn(1000, 128, generator=generator) @ mixing
    weight = torch.randn(48, 128, generator=generator)
    errors = []
    for moments in (None, inputs.T @ inputs):
        difference = torch.from_numpy(choose_integers(weight, how, moments).dequantized().T)
        errors.append(float((inputs @ (difference - weight).T).norm()))
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("moment", [0.0, float("nan")])
def test_inputs_that_say_nothing_are_refused(moment: float) -> None:
    weight, moments = torch.ones(8, 64), torch.full((64, 64), moment)
    with pytest.raises(ExportError, match="leaves a matrix undetermined; give a longer text"):
        choose_integers(weight, WAYS[0], moments)


def test_quantised_model_holds_the_dequantised_weights(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    before = copy.deepcopy(model.state_dict())
    chosen = quantize_model(model, WAYS[0]).weights
    after = model.state_dict()
    for name, weight in chosen.items():
        assert torch.equal(after[name], torch.from_numpy(weight.dequantized().T)), name
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    floats = {n for n in changed - set(chosen) if "lora_" in n or ".controller." in n}
    assert changed == set(chosen) | floats
    assert chosen["recurrent.gate.proj.weight"].bits == chosen["bridge.weight"].bits == 8
    assert not any("norm" in name or "controller" in name for name in chosen)
    assert torch.equal(after["lm_head.weight"], after["embed_tokens.weight"])


def test_graph_of_a_block_has_the_weights_that_are_joined_for_it(block_checkpoint: Path) -> None:
    """Every matrix of every looped layer has a name of its own, in both lists."""
    model, _ = load_checkpoint(block_checkpoint)
    chosen = quantize_model(model, WAYS[0]).weights
    names = {name for name in chosen if name.startswith("recurrent.layers.")}
    assert len(names) == 2 * 7
    step = Step(model, PRECISIONS["int4"], max_depth=2)
    held = {f"step.{name}": tuple(value.shape) for name, value in step.named_parameters()}
    joined = {name: one.values.shape for name, one in joined_weights(model, chosen)}
    assert {name: held[name] for name in joined if name.startswith("step.")} == {
        name: shape for name, shape in joined.items() if name.startswith("step.")
    }
    halves = stored_half(2)
    assert set(halves) <= held.keys()
    floats = {name for name in held if name.endswith(("low_rank.a", "low_rank.b"))}
    assert floats == {name for name in halves if "low_rank" in name}
    assert len(floats) == 2 * 4 * 2


def test_packing_puts_the_first_of_two_in_the_low_half() -> None:
    """ONNX, TensorProto.INT4."""
    assert pack(np.array([[1, -2, 7, -8]], np.int8), 4).tolist() == [[0xE1, 0x87]]
    assert pack(np.array([[1, -2]], np.int8), 8).tolist() == [[0x01, 0xFE]]


def test_joining_and_padding_keep_every_weight() -> None:
    generator = np.random.default_rng(0)
    one, two = (
        QuantizedWeight(
            generator.integers(0, 16, (64, width)),
            generator.random((2, width), np.float32),
            generator.integers(0, 16, (2, width)),
            4,
        )
        for width in (3, 4)
    )
    whole = join([one, two]).padded(8)
    assert whole.values.shape == (64, 8)
    expected = np.concatenate([one.dequantized(), two.dequantized()], axis=1)
    np.testing.assert_array_equal(whole.dequantized()[:, :7], expected)
    assert not whole.dequantized()[:, 7:].any()
    np.testing.assert_array_equal(one.scaled(0.5).dequantized(), 0.5 * one.dequantized())
