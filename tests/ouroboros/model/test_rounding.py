"""Rounding to blocks of integers: one form for training and export."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from export.quantize.model import Quantization, choose_integers
from ouroboros.errors import ConfigError
from ouroboros.model.rounding import ROWS, Rounding, check_qat


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [5, ROWS + 3])
def test_nearest_is_what_the_export_stores(bits: int, symmetric: bool, rows: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(rows, 64) * torch.rand(rows, 1)
    weight[0] = 0
    weight[1, :32] = 3.0  # all of a block on one side of zero
    stored = choose_integers(weight, Quantization(bits, 32, symmetric), None)
    found = Rounding(bits, 32, symmetric).nearest(weight)
    assert torch.equal(found, torch.from_numpy(stored.dequantized()).T)
    assert not torch.equal(found, weight)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("greatest", [1e-38, 1e-7, 2e-6, 1e-4, 1.0, 1e6, 1e30])
def test_scales_are_values_of_float16(greatest: float, symmetric: bool) -> None:
    """Of tiny weights none is cut off."""
    weight = torch.linspace(-greatest, greatest, 64)[None]
    rounding = Rounding(8, 32, symmetric)
    scales, _ = rounding.span(weight)
    assert torch.equal(scales.half().float(), scales)
    assert (scales > 0).all()
    if greatest <= 1.0:
        apart = (rounding.nearest(weight) - weight).abs().reshape(-1, 32) / scales[0, :, None]
        assert apart.max() <= 0.51 + 127 * 2.0**-11 * (greatest > 6e-5 * 127)


def test_nearest_leaves_what_it_reads() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 32))
    before = weight.detach().clone()
    assert not Rounding(4).nearest(weight).requires_grad
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 4}, r"qat has the keys \['bits'\]; it has"),
        ({"bits": 3, "block": 32, "symmetric": True}, "bits=3 is unknown; choose one of 4, 8"),
        ({"bits": 4, "block": 48, "symmetric": True}, "block=48 is unknown"),
        ({"bits": 4, "block": 32, "symmetric": 1}, "symmetric=1 is unknown"),
        ({"bits": True, "block": 32, "symmetric": True}, "bits=True is unknown"),
        ({"bits": [4], "block": 32, "symmetric": True}, r"bits=\[4\] is unknown"),
    ],
)
def test_what_names_no_rounding_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_qat(values)


def test_a_rounding_is_taken() -> None:
    check_qat({})
    check_qat({"bits": 4, "block": 64, "symmetric": False})
