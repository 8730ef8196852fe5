"""A gate whose first step starts open, with a bias of its own in every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ouroboros import convert, load_checkpoint
from ouroboros.errors import ConfigError
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.model.step import gate_means
from tests.support.tiny import SMALL
from tests.support.training import tiny_model

IDS = torch.tensor([[5, 9, 2, 7, 11, 3], [8, 2, 2, 30, 4, 6]])
BIASES = "recurrent.gate.steps.bias"


def opened(**changes: Any) -> OuroborosForCausalLM:
    """A model whose steps have biases that differ in every step and channel."""
    model = tiny_model(gate_start="open", **changes)
    generator = torch.Generator().manual_seed(2)
    biases = model.get_parameter(BIASES)
    with torch.no_grad():
        biases.add_(torch.randn(biases.shape, generator=generator))
    return model


def test_the_first_step_takes_the_layer_whole_and_the_later_ones_a_little() -> None:
    model = tiny_model(gate_start="open")
    with torch.no_grad():
        model.get_parameter("recurrent.gate.proj.weight").zero_()
    assert gate_means(model, IDS, 4) == pytest.approx([0.982, 0.0356, 0.0356, 0.0356], abs=1e-3)
    assert BIASES in model.trainable_names()
    assert BIASES not in tiny_model().state_dict()


def test_biases_of_one_value_are_the_shared_bias() -> None:
    plain, model = tiny_model(), tiny_model(gate_start="open")
    model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        model.get_parameter(BIASES).fill_(1.5)
        plain.get_parameter("recurrent.gate.proj.bias").add_(1.5)
    torch.testing.assert_close(model(IDS, depth=4).logits, plain(IDS, depth=4).logits)


@pytest.mark.parametrize("block", [1, 2])
def test_cached_and_uncached_logits_agree(block: int) -> None:
    model = opened(recurrent=4 - block, recurrent_layers=block)
    first = model(IDS[:, :4], depth=3, use_cache=True)
    rest = model(IDS[:, 4:], depth=3, past_key_values=first.past_key_values, use_cache=True)
    whole = model(IDS, depth=3).logits
    torch.testing.assert_close(rest.logits, whole[:, 4:], rtol=1e-4, atol=1e-4)


def test_rows_of_their_own_depth_equal_runs_at_it() -> None:
    model = opened()
    mixed = model(IDS, depth=[2, 5]).logits
    for row, depth in enumerate((2, 5)):
        alone = model(IDS[row : row + 1], depth=depth).logits[0]
        torch.testing.assert_close(mixed[row], alone, rtol=1e-4, atol=1e-4)


def test_every_step_learns_its_own() -> None:
    model = opened()
    model(IDS, labels=IDS, depth=3).loss.backward()
    slope = model.get_parameter(BIASES).grad
    assert slope is not None
    assert slope[:3].abs().amax(dim=1).min() > 0
    assert not slope[3:].any()


def test_a_conversion_records_it_and_one_without_a_gate_is_refused(
    tiny_original: Path, tmp_path: Path
) -> None:
    options = {**SMALL, "recurrent": 3, "bridge": "entry", "gate_start": "open"}
    convert(str(tiny_original), tmp_path / "open", **options)
    model, _ = load_checkpoint(tmp_path / "open")
    assert model.config.gate_start == "open"
    first, later = model.get_parameter(BIASES)[:2]
    assert (first == 6.0).all()
    assert torch.allclose(later, torch.tensor(-1.3))
    with pytest.raises(ConfigError, match="gate_start='open' is of a gate, and this model has non"):
        tiny_model(gate_start="open", gate=False)
    with pytest.raises(
        ConfigError, match="gate_start='shut' is unknown; choose one of alike, open"
    ):
        tiny_model(gate_start="shut")
