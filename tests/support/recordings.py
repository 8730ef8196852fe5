"""Recorded cases whose list or tensors no reader takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

Entries = list[dict[str, Any]]


def of_first(**fields: Any) -> Callable[[Entries], str]:
    """Changes fields of the first entry."""
    return lambda entries: json.dumps([{**entries[0], **fields}, *entries[1:]])


NO_LIST = "holds no list of cases; export the bundle again"
# The text of the list that stands in the place of the entries, and what the refusal says.
WRONG: dict[str, tuple[Callable[[Entries], str], str]] = {
    "deep": (lambda entries: "[" * 100_000, NO_LIST),
    "key twice": (lambda entries: '[{"name": "a", "name": "b"}]', NO_LIST),
    "no number": (of_first(depth=float("nan")), NO_LIST),
    "object": (lambda entries: "{}", "the list of recorded cases is not a list"),
    "after a list": (of_first(after=[1]), r"follows \[1\], which is not before it"),
    "after much": (of_first(after="x" * 99), r"follows 'x+\.\.\., which is not before it"),
    "positions a text": (of_first(positions=""), "has no list of positions"),
    "positions false": (of_first(positions=False), "has no list of positions"),
    "position too large": (of_first(positions=[2**63]), "has no list of positions"),
    "errors a list": (of_first(reference_error=[]), "has errors that are no numbers above 0"),
    "error no float": (of_first(reference_error={"logits": 1}), "has errors that are no numbers"),
}


def rewrite(file: Path, change: Callable[[Entries], str], **dtypes: Any) -> None:
    """Writes the list of cases anew, and of the first tensor another type where one is given."""
    with safe_open(str(file), framework="np") as opened:
        entries = json.loads(opened.metadata()["cases"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name in sorted(tensors)[: len(dtypes)]:
        tensors[name] = np.ascontiguousarray(tensors[name].astype(dtypes["dtype"]))
    save_file(tensors, file, metadata={"cases": change(entries)})
