"""The loop's entry state, injected into every step: nothing at first, a plain formula after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ouroboros import convert, load_checkpoint
from ouroboros.errors import ConfigError
from ouroboros.model.modeling import OuroborosForCausalLM
from tests.support.tiny import SMALL
from tests.support.training import tiny_model

IDS = torch.tensor([[5, 9, 2, 7, 11, 3], [8, 2, 2, 30, 4, 6]])


def injecting(**changes: Any) -> OuroborosForCausalLM:
    model = tiny_model(input_injection="add", **changes)
    generator = torch.Generator().manual_seed(2)
    weight = model.get_parameter("recurrent.injection.weight")
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def test_it_starts_as_nothing() -> None:
    plain, model = tiny_model(), tiny_model(input_injection="add")
    model.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(model(IDS, depth=4).logits, plain(IDS, depth=4).logits)
    assert "recurrent.injection.weight" in model.trainable_names()
    assert not any("injection" in name for name in plain.state_dict())


@pytest.mark.parametrize("bridge", ["none", "entry", "exit"])
def test_the_layers_of_every_step_are_fed_it(bridge: str) -> None:
    """The Controller and the gate see h; the layer sees h + w e, e what entered step 0."""
    model = injecting(bridge=bridge)
    weight = model.get_parameter("recurrent.injection.weight")
    fed: list[torch.Tensor] = []
    model.recurrent.layers[0].register_forward_pre_hook(
        lambda module, inputs: fed.append(inputs[0])
    )
    entered = model(IDS, depth=4, output_hidden_states=True).hidden_states[2:6]
    assert len(fed) == 4
    for state, given in zip(entered, fed, strict=True):
        torch.testing.assert_close(given, state + weight * entered[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooling", ["causal", "mean", "token"])
def test_cached_and_uncached_logits_agree(pooling: str) -> None:
    model = injecting(pooling=pooling)
    first = model(IDS[:, :4], depth=3, use_cache=True)
    rest = model(IDS[:, 4:], depth=3, past_key_values=first.past_key_values, use_cache=True)
    if pooling != "mean":
        whole = model(IDS, depth=3).logits
        torch.testing.assert_close(rest.logits, whole[:, 4:], rtol=1e-4, atol=1e-4)
    assert torch.isfinite(rest.logits).all()


def test_rows_of_their_own_depth_equal_runs_at_it() -> None:
    model = injecting()
    mixed = model(IDS, depth=[2, 5]).logits
    for row, depth in enumerate((2, 5)):
        alone = model(IDS[row : row + 1], depth=depth).logits[0]
        torch.testing.assert_close(mixed[row], alone, rtol=1e-4, atol=1e-4)


def test_it_brings_gradients_to_a_bridge_that_truncation_cuts_off() -> None:
    model = injecting(bridge="entry")
    model(IDS, labels=IDS, depth=5, backprop_steps=2).loss.backward()
    slope = model.get_parameter("bridge.weight").grad
    assert slope is not None
    assert bool(slope.any())
    without = tiny_model(bridge="entry")
    without(IDS, labels=IDS, depth=5, backprop_steps=2).loss.backward()
    assert without.get_parameter("bridge.weight").grad is None


def test_a_conversion_with_it_is_the_one_without(tiny_original: Path, tmp_path: Path) -> None:
    for choice in ("none", "add"):
        options = {**SMALL, "recurrent": 3, "bridge": "entry", "input_injection": choice}
        convert(str(tiny_original), tmp_path / choice, **options)
    one, other = (load_checkpoint(tmp_path / choice)[0] for choice in ("none", "add"))
    assert torch.equal(one(IDS, depth=3).logits, other(IDS, depth=3).logits)
    assert (one.config.input_injection, other.config.input_injection) == ("none", "add")
    with pytest.raises(ConfigError, match="input_injection='concat' is unknown; choose one of non"):
        tiny_model(input_injection="concat")
