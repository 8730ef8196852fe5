"""The looped part: a block of k consecutive layers, and which removed layers each stands in for."""

from __future__ import annotations

from ouroboros.errors import ConfigError


def check_block(first: int, count: int, prelude: int, coda: int, total: int) -> None:
    """Refuses a block that is not made of replaced layers.

    Args:
        first: number of its first layer in the original model.
        count: its layers; 0 where nothing is looped, which is not looked at further.
        prelude: first layers that are kept.
        coda: last layers that are kept.
        total: layers of the original model.

    Raises:
        ConfigError: it reaches out of the model, into the prelude or into the coda; or nothing is
            looped and nothing kept.
    """
    if count < 0:
        raise ConfigError(f"recurrent_layers={count} is negative", "give 0 (no loop) or more")
    if not count:
        if not prelude + coda:
            raise ConfigError("nothing is looped and no layer kept", "keep some, or loop some")
        return
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


def check_unlooped(count: int, max_depth: int, bridge: str) -> None:
    """Refuses, of a model that loops nothing, what only a loop has.

    A bridge alone stands between its prelude and its coda, or nothing; its one depth means nothing.

    Args:
        count: layers that are looped; nothing is refused where there are some.
        max_depth: of the config.
        bridge: likewise.

    Raises:
        ConfigError: there is more than one depth, or a bridge at the loop's entry.
    """
    if not count and (max_depth > 1 or bridge == "entry"):
        raise ConfigError(
            f"recurrent_layers=0 with max_depth={max_depth} and bridge={bridge}: where nothing is "
            "looped there is no depth and no loop to enter",
            "set max_depth to 1 and bridge to exit or none",
        )


def check_bases(bases: str, modulation: str) -> None:
    """Refuses bases of the removed layers where none are used.

    Args:
        bases: of the config.
        modulation: likewise.

    Raises:
        ConfigError: each step is to have a base, and the modulation has none or trains its own.
    """
    if bases == "per_step" and modulation in ("free", "none"):
        raise ConfigError(
            f"bases=per_step is of frozen bases, and modulation={modulation} has none",
            "leave bases at mean, or choose modulation controller or static",
        )


def name_block(first: int, count: int) -> str:
    """Names a block in a sentence: `layer 18`, `layers 18-21`, `no layer`."""
    if not count:
        return "no layer"
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
