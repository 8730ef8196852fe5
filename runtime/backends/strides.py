"""Cuts a copy between strided tensors into the boxes that a GPU's copy engine moves at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Level(NamedTuple):
    """One dimension of a copy.

    Attributes:
        size: how many there are.
        strides: bytes from one to the next, in every tensor that takes part.
    """

    size: int
    strides: tuple[int, ...]


def cut_into_boxes(
    levels: Sequence[Level], starts: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], list[Level]]]:
    """The fewest boxes found: each of at most two levels, the outer a multiple of the inner.

    Args:
        levels: from the outermost to the innermost, whose items lie together.
        starts: the address of the first item, in every tensor.

    Yields:
        The addresses of a box's first items, and its levels.
    """
    merged = _merge(levels)
    if len(merged) < 2 or (len(merged) == 2 and _is_pitched(*merged)):
        yield starts, merged
        return
    # One box for each of the shortest of the outer levels.
    place = min(range(len(merged) - 1), key=lambda index: merged[index].size)
    level, rest = merged[place], [*merged[:place], *merged[place + 1 :]]
    for index in range(level.size):
        moved = (
            start + index * stride for start, stride in zip(starts, level.strides, strict=True)
        )
        yield from cut_into_boxes(rest, tuple(moved))


def _merge(levels: Sequence[Level]) -> list[Level]:
    """Levels without those of one, and two that go on evenly as one."""
    merged: list[Level] = []
    for level in levels:
        if level.size == 1:
            continue
        whole = tuple(level.size * stride for stride in level.strides)
        if merged and merged[-1].strides == whole:
            merged[-1] = Level(merged[-1].size * level.size, level.strides)
        else:
            merged.append(level)
    return merged


def _is_pitched(outer: Level, inner: Level) -> bool:
    """Whether the outer stride is a whole number of the inner one, as CUDA's slices want it."""
    return all(far % near == 0 for far, near in zip(outer.strides, inner.strides, strict=True))
