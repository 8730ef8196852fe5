"""Which removed layers each layer of a block stands in for."""

from __future__ import annotations

from ouroboros.model.block import name_block, removed_by_layer


def test_removed_layers_are_dealt_out_by_their_numbers() -> None:
    """Layers 18-21 of 30 between a prelude of 8 and a coda of 5: 8..17 and 22..24 are removed."""
    assert removed_by_layer(18, 4, 8, 5, 30) == [
        [10, 14, 22],
        [11, 15, 23],
        [8, 12, 16, 24],
        [9, 13, 17],
    ]


def test_one_layer_stands_in_for_all() -> None:
    assert removed_by_layer(21, 1, 8, 8, 30) == [[*range(8, 21)]]


def test_block_of_all_stands_in_for_none() -> None:
    assert removed_by_layer(2, 3, 2, 1, 6) == [[], [], []]


def test_blocks_are_named() -> None:
    assert (name_block(18, 1), name_block(18, 4)) == ("layer 18", "layers 18-21")
