"""The sheet of larger models is what its page says."""

from __future__ import annotations

import pytest

from bench.scale import (
    BEGIN,
    END,
    PAGE,
    SIZES,
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
