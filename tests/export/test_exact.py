"""The float64 twin that errors are measured by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.exact import exact_twin
from ouroboros import load_checkpoint


@pytest.mark.parametrize(
    "name", ["tiny_checkpoint", pytest.param("massive_checkpoint", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_twin_is_float64_from_end_to_end(name: str, request: pytest.FixtureRequest) -> None:
    """In float64 a row alone and beside others, cached or not, agrees to 1e-12; in float32 not."""
    checkpoint: Path = request.getfixturevalue(name)
    model, _ = load_checkpoint(checkpoint)
    ids = torch.arange(3, 51).reshape(4, 12)
    differences = {}
    for kind in (exact_twin(model), model):
        whole = kind(input_ids=ids, depth=[3, 1, 5, 2], use_cache=False).logits
        cached = kind(input_ids=ids[:1, :7], depth=3)
        rest = kind(input_ids=ids[:1, 7:], depth=3, past_key_values=cached.past_key_values).logits
        scale = whole[0].norm()
        differences[whole.dtype] = float((whole[0, 7:] - rest[0]).norm() / scale)
    assert differences[torch.float64] < 1e-12
    assert differences[torch.float32] > 1e-9


@torch.no_grad()
def test_twin_shares_the_weights_and_leaves_them_alone(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = exact_twin(model)
    twin(input_ids=torch.arange(3, 9)[None], depth=2)
    assert twin.lm_head.head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@torch.no_grad()
def test_twin_computes_what_the_model_computes(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    ids = torch.arange(3, 20)[None]
    exact, plain = (one(input_ids=ids, depth=4).logits for one in (exact_twin(model), model))
    error = (plain.double() - exact).norm() / exact.norm()
    assert 1e-9 < error < 1e-5
