"""Holds an answer against the recorded one."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

RELATIVE_L2 = 1e-6  # of logits
LOGPROB = 1e-6  # absolute


def differences(found: Any, expected: Any, where: str = "answer") -> Iterator[str]:
    """Lines that say where an answer is another than the recorded one: none where it is the same.

    Everything is equal but logits, by their relative L2, and log-probabilities, by their distance.
    """
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        if "float32" in expected:
            yield from _logits_differ(found, expected, where)
            return
        for key in expected:
            yield from differences(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from differences(one, other, f"{where}[{place}]")
    elif isinstance(expected, float) and isinstance(found, float):
        if not math.isclose(found, expected, rel_tol=0.0, abs_tol=LOGPROB):
            yield f"{where}: {found!r}, recorded {expected!r}"
    elif type(found) is not type(expected) or found != expected:
        yield f"{where}: {found!r:.300}, recorded {expected!r:.300}"


def _logits_differ(found: Any, expected: Any, where: str) -> Iterator[str]:
    if found["shape"] != expected["shape"]:
        yield f"{where}: shape {found['shape']}, recorded {expected['shape']}"
        return
    one, other = (
        np.frombuffer(base64.b64decode(each["float32"]), "<f4").astype(np.float64)
        for each in (found, expected)
    )
    error = float(np.linalg.norm(one - other) / np.linalg.norm(other))
    if not error <= RELATIVE_L2:
        yield f"{where}: logits differ by a relative L2 of {error:.2e}"
