"""The way in behind the prelude: the same loss and gradients as from the tokens, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ouroboros.errors import ConfigError
from ouroboros.model.cache import OuroborosCache
from ouroboros.model.prelude import run_prelude
from tests.support.training import tiny_model

PACKED = [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]


def inputs(packed: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    ids = torch.randint(2, 28, (2, len(PACKED)), generator=torch.Generator().manual_seed(0))
    return ids, torch.tensor([PACKED, list(range(len(PACKED)))]) if packed else None


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("bridge", ["entry", "exit", "none"])
@pytest.mark.parametrize("pooling", ["causal", "mean"])
def test_loss_and_gradients_are_those_from_the_tokens(
    packed: bool, bridge: str, pooling: str
) -> None:
    model = tiny_model(bridge=bridge, pooling=pooling).train()
    model.mark_trainable("full", "full")
    ids, positions = inputs(packed)
    state = run_prelude(model, ids, positions)
    common = {"position_ids": positions, "labels": ids, "depth": 3, "output_hidden_states": True}
    wanted = model(input_ids=ids, **common)
    expected = gradients(model, wanted.loss)
    found = model(prelude_state=state, **common)
    assert torch.equal(found.loss, wanted.loss)
    assert torch.equal(found.logits, wanted.logits)
    actual = gradients(model, found.loss)
    assert actual.keys() == expected.keys()
    assert any("coda" in name for name in actual)
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())
    assert len(found.hidden_states) == 1 + 3 + 2
    assert all(map(torch.equal, found.hidden_states, wanted.hidden_states[2:]))


def test_state_is_that_of_the_last_prelude_layer() -> None:
    model = tiny_model(bridge="none")
    ids, positions = inputs(True)
    wanted = model(ids, position_ids=positions, depth=1, output_hidden_states=True).hidden_states[2]
    state = run_prelude(model, ids, positions)
    assert torch.equal(state, wanted)
    assert not state.requires_grad
    # The test can fail: documents that see each other leave another state.
    assert not torch.allclose(state, run_prelude(model, ids), atol=1e-3)


def test_rows_of_their_own_depth_go_on_from_it() -> None:
    model = tiny_model()
    ids, _ = inputs(False)
    wanted = model(ids, depth=[1, 3], use_cache=False).logits
    assert torch.equal(model(prelude_state=run_prelude(model, ids), depth=[1, 3]).logits, wanted)


def test_a_second_input_or_a_cache_beside_it_is_refused() -> None:
    model = tiny_model()
    ids, _ = inputs(False)
    state = run_prelude(model, ids)
    with pytest.raises(ConfigError, match=r"exactly one of .* not input_ids and prelude_state"):
        model(ids, prelude_state=state)
    with pytest.raises(ConfigError, match=r"exactly one of input_ids, inputs_embeds .* not none"):
        model()
    for extra in ({"use_cache": True}, {"past_key_values": OuroborosCache(4)}):
        with pytest.raises(ConfigError, match=r"a prelude_state has no cache: .* use_cache=False"):
            model(prelude_state=state, **extra)
    assert model(prelude_state=state).past_key_values is None
