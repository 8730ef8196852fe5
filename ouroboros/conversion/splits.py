"""Splits: how many of the kept layers stand before the loop, and how many behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ouroboros.model.modeling import OuroborosForCausalLM

Split = tuple[int, int]
"""Layers of the prelude and of the coda."""

SHARES = (4 / 16, 5 / 16, 6 / 16, 7 / 16, 8 / 16, 10 / 16)
"""Parts of the kept layers that are tried as the prelude: long codas were better than long preludes
wherever it was measured (`study/LOG.md`)."""

TRIED = 3  # of the best layers at one split, at each other split


def list_splits(prelude: int, coda: int) -> list[Split]:
    """Returns the splits to try of as many layers as are kept, the given one first.

    Of the others none is without a prelude or a coda.

    Args:
        prelude: first layers kept, as given.
        coda: last layers kept, as given.
    """
    kept = prelude + coda
    preludes = sorted({math.floor(kept * share + 0.5) for share in SHARES} - {prelude})
    return [(prelude, coda), *((one, kept - one) for one in preludes if 1 <= one < kept)]


def shortlist(
    best: Sequence[int], given: Split, split: Split, possible: Sequence[int]
) -> list[int]:
    """Returns the layers to try at a split, by what was found at another one.

    A layer may be good for what it does, or for its place, just before the coda, say: the best are
    tried by their own number and by their distance from the coda, which is the same as that from
    the prelude, since as many layers are kept.

    Args:
        best: layers by their first one's number, the best first, at the split `given`.
        given: that split.
        split: the one that layers are wanted for.
        possible: numbers of the layers that can be looped there.
    """
    moved = split[0] - given[0]
    wanted = {one + shift for one in best[:TRIED] for shift in (0, moved)}
    return sorted(wanted & set(possible))


def move_split(
    model: OuroborosForCausalLM,
    read: Callable[[int], dict[str, torch.Tensor]],
    split: Split,
) -> None:
    """Moves layers between a model's prelude and coda, and reads what these are to hold.

    Args:
        model: as taken over; as many layers are kept as before.
        read: returns the weights of a layer of the original model, by its number.
        split: layers of prelude and coda.
    """
    config = model.config
    before = kept_layers(config.original_layers, (config.prelude, config.coda))
    layers = [*model.prelude, *model.coda]
    for layer, old, new in zip(
        layers, before, kept_layers(config.original_layers, split), strict=True
    ):
        if new != old:
            layer.load_state_dict(read(new))
    config.prelude, config.coda = split
    model.prelude, model.coda = nn.ModuleList(layers[: split[0]]), nn.ModuleList(layers[split[0] :])


def kept_layers(total: int, split: Split) -> list[int]:
    """Returns the original numbers of the layers in prelude and coda."""
    return [*range(split[0]), *range(total - split[1], total)]


def name_split(split: Split) -> str:
    """Writes a split as tables do: `6|10`."""
    return f"{split[0]}|{split[1]}"
