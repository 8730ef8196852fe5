"""Calibration text carried through a model, and channels evened out with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from export.quantize.calibration import CalibrationRun, blocks_in_order, summing
from export.quantize.model import Quantization, quantize_model
from export.quantize.smoothing import smooth_model
from ouroboros import load_checkpoint
from tests.support.training import tiny_model

DEPTH = 3


@pytest.fixture(params=["entry", "exit"])
def model(tiny_checkpoint: Path, request: pytest.FixtureRequest) -> Any:
    """The tiny model, its bridge on either side of the loop."""
    model = load_checkpoint(tiny_checkpoint)[0]
    model.config.bridge = request.param
    return model


@pytest.fixture
def windows() -> torch.Tensor:
    """More than one batch, the last one smaller."""
    return torch.randint(3, 250, (5, 24), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model: Any, windows: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=windows, depth=DEPTH, use_cache=False).logits
    return result


@torch.no_grad()
def test_text_arrives_as_the_model_carries_it(model: Any, windows: torch.Tensor) -> None:
    run = CalibrationRun(model, windows, DEPTH)
    linears = {
        "bridge": model.bridge,
        "looped": model.recurrent.layers[0].mlp.down_proj,
        "last": model.coda[-1].mlp.up_proj,
    }
    expected = {linear: torch.zeros((linear.in_features,) * 2) for linear in linears.values()}
    with summing(expected):
        whole = logits(model, windows)
    found = {}
    for _, block in blocks_in_order(model):
        for name, linear in linears.items():
            if linear in set(block.modules()):
                found |= run.second_moments(block, {name: linear})
        run.advance(block)
    for name, linear in linears.items():
        torch.testing.assert_close(found[name], expected[linear], rtol=1e-4, atol=1e-3)
    carried = model.lm_head(model.norm(torch.cat(run.hidden)))
    torch.testing.assert_close(carried, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_injected_state_is_what_the_changed_layers_before_the_loop_leave(
    windows: torch.Tensor,
) -> None:
    """What is quantised before the loop changes the state at its entry, for every step."""
    model = tiny_model(259, input_injection="add", bridge="entry")
    model.get_parameter("recurrent.injection.weight").normal_()
    run = CalibrationRun(model, windows, DEPTH)
    for _, block in blocks_in_order(model):
        if block is not model.recurrent:
            for weight in block.parameters():
                weight.mul_(1.1)
        run.advance(block)
    carried = model.lm_head(model.norm(torch.cat(run.hidden)))
    torch.testing.assert_close(carried, logits(model, windows), rtol=1e-4, atol=1e-4)


def test_smoothed_model_computes_what_it_did(model: Any, windows: torch.Tensor) -> None:
    before = logits(model, windows)
    sizes = smooth_model(model, windows, DEPTH)
    assert sizes is not None
    assert float(sizes.max() / sizes.min()) > 1.1
    assert model.lm_head.weight is not model.embed_tokens.weight
    torch.testing.assert_close(logits(model, windows), before, rtol=1e-4, atol=1e-4)


def test_smoothing_makes_no_logits_of_every_position(model: Any, windows: torch.Tensor) -> None:
    """Of 8 windows and 150,000 tokens of vocabulary they would take a gigabyte."""
    made: list[int] = []
    handle = model.lm_head.register_forward_hook(
        lambda module, inputs, output: made.append(output.shape[1])
    )
    smooth_model(model, windows, DEPTH)
    handle.remove()
    assert set(made) == {1}


def test_smoothing_evens_out_the_inputs(model: Any, windows: torch.Tensor) -> None:
    with torch.no_grad():
        model.norm.weight[0] *= 100.0
        model.coda[0].mlp.up_proj.weight[5] *= 100.0
    watched = [model.lm_head, model.coda[0].mlp.down_proj]

    def ratios() -> list[float]:
        sums = {linear: torch.zeros(linear.in_features) for linear in watched}
        with summing(sums):
            logits(model, windows)
        return [float((total.max() / total.median()).sqrt()) for total in sums.values()]

    before = ratios()
    smooth_model(model, windows, DEPTH)
    for wide, even in zip(before, ratios(), strict=True):
        assert even == pytest.approx(wide**0.5, rel=0.2)


def test_sensitive_matrices_keep_eight_bits(model: Any, windows: torch.Tensor) -> None:
    result = quantize_model(model, Quantization(4, depth=DEPTH), windows)
    few = {name for name, weight in result.weights.items() if weight.bits == 4}
    assert few == {f"prelude.1.mlp.{name}_proj.weight" for name in ("gate", "up")}
    # The embedding is what the head's integers say, each channel as large as it was.
    assert result.embedding_factor is not None
    table = torch.from_numpy(result.weights["embed_tokens.weight"].dequantized().T)
    torch.testing.assert_close(
        model.embed_tokens.weight, table * torch.from_numpy(result.embedding_factor)
    )
