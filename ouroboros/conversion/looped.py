"""How a conversion is told its looped part: a layer, a block of layers, or the best of either."""

from __future__ import annotations

import re

from ouroboros.errors import ConfigError

AUTO, NONE = "auto", "none"
SPLITS = ("fixed", AUTO)
_BLOCK = re.compile(r"(\d+)-(\d+)")
_AUTO = re.compile(rf"{AUTO}:(\d+)")


def parse_looped(recurrent: int | str) -> tuple[int | None, int]:
    """Returns the first layer of the looped part, None where it is to be found, and its layers.

    Args:
        recurrent: `18` a layer, `18-21` a block of consecutive ones, `auto` the best layer,
            `auto:4` the best block of 4, `none` no layer.

    Raises:
        ConfigError: it is none of these, or a block without a layer.
    """
    text = str(recurrent).strip()
    if text == NONE:
        return 0, 0
    if text == AUTO:
        return None, 1
    if re.fullmatch(r"-?\d+", text):
        return int(text), 1
    if found := _AUTO.fullmatch(text):
        if (count := int(found[1])) < 1:
            raise ConfigError(
                f"recurrent={text} asks for a block of {count} layers", "give 1 or more"
            )
        return None, count
    if found := _BLOCK.fullmatch(text):
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise ConfigError(
                f"recurrent={text} runs backwards: a block is named by its first and its last "
                "layer",
                f"give {last}-{first}",
            )
        return first, last - first + 1
    raise ConfigError(
        f"recurrent={recurrent!r:.80} is neither auto nor the number of a layer, counted from 0, "
        "nor a block of consecutive ones",
        "give one such as auto, 18, 18-21, auto:4 or none",
    )


def check_split(split: str, recurrent: int | str, count: int) -> None:
    """Refuses a split that can't be found.

    Args:
        split: `fixed`, prelude and coda as they were given, or `auto`.
        recurrent: as it was given.
        count: layers that are looped.

    Raises:
        ConfigError: it is neither, or nothing is looped that splits could be compared with.
    """
    if split not in SPLITS:
        raise ConfigError(f"split={split!r:.80} is unknown", f"choose one of {', '.join(SPLITS)}")
    if split == AUTO and not count:
        raise ConfigError(
            f"split={split} compares splits by their best looped layers, and "
            f"recurrent={recurrent} loops none",
            "name --prelude and --coda with --split fixed, or loop a layer",
        )


def check_looped(
    recurrent: int | str, first: int | None, count: int, prelude: int, coda: int, total: int
) -> None:
    """Refuses what only `--recurrent` can ask for; the rest is the config's to refuse.

    Args:
        recurrent: as it was given.
        first: of `parse_looped`.
        count: likewise.
        prelude: first layers to keep.
        coda: last layers to keep.
        total: layers of the original model.

    Raises:
        ConfigError: a negative layer, or the best of blocks that are larger than what is replaced.
    """
    last, left = total - coda - 1, total - coda - prelude
    if first is not None and first < 0:
        raise ConfigError(
            f"recurrent layer {first} is negative",
            f"give auto or one of the replaced layers {prelude}..{last}",
        )
    if first is None and 1 <= left < count:
        raise ConfigError(
            f"recurrent={recurrent} asks for a block of {count} layers, and prelude {prelude} + "
            f"coda {coda} of {total} layers leave {left}",
            f"give a block of 1..{left}, or keep fewer",
        )
