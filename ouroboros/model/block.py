"""The looped part: a block of k consecutive layers, and which removed layers each stands in for."""

from __future__ import annotations

from ouroboros.errors import ConfigError


def check_block(first: int, count: int, prelude: int, coda: int, total: int) -> None:
    """Refuses a block that is not made of replaced layers.

    Args:
        first: number of its first layer in the original model.
        count: its layers.
        prelude: first layers that are kept.
        coda: last layers that are kept.
        total: layers of the original model.

    Raises:
        ConfigError: it is empty, or reaches out of the model, into the prelude or into the coda.
    """
    if count < 1:
        raise ConfigError(f"recurrent_layers={count} must be 1 or more")
    end, last = first + count - 1, total - coda - 1
    what, one = name_block(first, count), count == 1
    if not (first >= 0 and end < total):
        raise ConfigError(
            f"recurrent {what} {'is' if one else 'are'} out of range",
            f"the model has layers 0..{total - 1}",
        )
    if not (first >= prelude and end <= last):
        raise ConfigError(
            f"recurrent {what} {'is kept in' if one else 'reach into'} the prelude or coda",
            f"choose {'one' if one else 'a block'} of the replaced layers {prelude}..{last}",
        )


def name_block(first: int, count: int) -> str:
    """Names a block in a sentence: `layer 18`, `layers 18-21`."""
    return f"layer {first}" if count == 1 else f"layers {first}-{first + count - 1}"


def removed_by_layer(
    first: int, count: int, prelude: int, coda: int, total: int
) -> list[list[int]]:
    """Returns, for each layer of a block, the removed layers whose work it takes over.

    Layer j of the block takes those whose number is congruent to its own modulo the block's size,
    as if the block were laid out over all the replaced layers again and again; the block itself is
    left out. A list is empty where too few layers are removed to reach its layer.

    Arguments are those of `check_block`.
    """
    return [
        [one for one in range(prelude + (own - prelude) % count, total - coda, count) if one != own]
        for own in range(first, first + count)
    ]
