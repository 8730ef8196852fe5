"""The sheet of larger models is what its page says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.scale import (
    BEGIN,
    END,
    PAGE,
    SIZES,
    Sheet,
    count_flops,
    fold,
    make_sheets,
    read_options,
    render,
)


@pytest.mark.slow
@pytest.mark.needs_torch
def test_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0].strip() == render(make_sheets())


@pytest.mark.needs_torch
def test_operations_are_those_of_a_count_by_hand() -> None:
    """SmolLM2: 3,538,944 weights in a layer's matrices, 28,311,552 in the head."""
    layer, head, d = 3_538_944, 28_311_552, 576
    mean_depth = 16 / sum(1 / depth for depth in range(1, 17))
    bases = 32 * sum(a + b for a, b in SHAPES)
    controller = 256 * d + 256 * 384 + 128 * 256 + 7 * 32 * 128
    step = layer + 2 * d * d + controller + bases
    expected = 2 * (30 * layer + head) + 2 * 8 * layer
    expected += 6 * (d * d + 8 * layer + step * mean_depth) + 4 * head
    size = SIZES[0]
    assert count_flops(fold(size), read_options(size)) == pytest.approx(expected, rel=1e-12)


# Inputs and outputs of the seven projections.
SHAPES = (
    (576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576),
)  # fmt: skip


def sheet(activations: float, **changes: Any) -> Sheet:
    """Of a plan that holds 20 GB of weights, as much to learn them by, and activations."""
    plan = SimpleNamespace(
        weights=20e9, teacher=0, gradients=10e9, optimizer=20e9, activations=activations, logits=0,
        total=50e9 + activations,
    )  # fmt: skip
    parts: dict[str, Any] = {"whole": 20e9, "ends": 4e9, "layer": 1e9}
    made: Any = Sheet
    found: Sheet = made(SIZES[2], 0, plan, **{**parts, **changes}, flops=1, tokens=1)
    return found


def test_what_no_gpu_holds_is_split() -> None:
    small, large = sheet(20e9), sheet(55e9)
    assert (small.card, small.sharded) == ("H100", False)
    assert (large.card, large.sharded) == ("H200", True)
    # 50 GB in pieces beside 60: 72 of an H100's 80 are taken.
    assert large.in_pieces(2) == 85e9
    assert large.fewest() == 5
    assert sheet(80e9).card == ""
    assert sheet(70e9).fewest() == 0
    table = render([small, large, sheet(70e9)])
    assert "| H100s | 8 | 8, with FSDP | 8, with FSDP |" in table
    assert "| all of it, in one process | 70.0 GB | 105.0 GB | 120.0 GB |" in table
    assert "holds it in 90% of its memory | H100, 80 GB | H200, 141 GB | H200, 141 GB |" in table
    assert "| **memory of each of the H100s** | 70.0 GB | 66.2 GB | 81.2 GB |" in table
    assert "| H100s that it takes at least | 1 | 5 | no number does |" in table
