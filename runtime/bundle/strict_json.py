"""JSON as all of a bundle's is read."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> object:
    """Reads JSON that holds no key twice, no NaN and no infinity.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} appears twice")
        result[key] = value
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
