"""Recorded cases whose list or tensors no reader takes, and those that no engine runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from runtime.parity.cases import Case

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


def altered(kind: str, **arrays: Callable[[Any], Any]) -> Callable[[list[Case]], list[Case]]:
    """Changes arrays of the first case of a kind, `inputs__depth` for one; None takes one out."""

    def make(cases: list[Case]) -> list[Case]:
        place = next(place for place, case in enumerate(cases) if case.kind == kind)
        for where, change in arrays.items():
            part, _, name = where.partition("__")
            held = dict(getattr(cases[place], part))
            array = change(held.pop(name, None))
            fields: dict[str, Any] = {part: held if array is None else {**held, name: array}}
            cases[place] = dataclasses.replace(cases[place], **fields)
        return cases

    return make


def typed(kind: type) -> Callable[[Any], Any]:
    return lambda array: array.astype(kind)


# Cases that fail by what they hold: of which bundle, what is changed, and what is said of it.
ODD: dict[str, tuple[str, Callable[[list[Case]], list[Case]], str]] = {
    "ids of floats": (
        *("llama", altered("prefill", inputs__input_ids=typed(np.float32))),
        "its input input_ids is float32, the graph's is int64",
    ),
    "depth of a float": (
        *("llama", altered("mixed", inputs__row_depth=typed(np.float64))),
        "its input row_depth is float64, the graph's is int64",
    ),
    "sums of doubles": (
        *("llama", altered("prefill", inputs__past_pool_sum=typed(np.float64))),
        "its input past_pool_sum is float64, the graph's is float32",
    ),
    "sums of halves": (
        *("llama", altered("prefill", inputs__past_pool_sum=typed(np.float16))),
        "its input past_pool_sum is float16, the graph's is float32",
    ),
    "mask of bools": (
        *("llama", altered("padded", inputs__attention_mask=typed(bool))),
        "its input attention_mask is bool, the graph's is int64",
    ),
    "depths of two dimensions": (
        *("llama", altered("prefill", inputs__row_depth=lambda array: array[None])),
        "its input row_depth has 2 dimensions, not those it needs",
    ),
    "another input": (
        *("llama", altered("prefill", inputs__more=lambda _: np.zeros(1, np.int64))),
        "the graph has no more",
    ),
    "no mask": (
        *("llama", altered("prefill", inputs__attention_mask=lambda _: None)),
        "its input attention_mask is missing",
    ),
    "prompt of floats": (
        *("llama", altered("greedy", inputs__prompt=typed(np.float32))),
        "its recorded tokens are float32, not int64",
    ),
    "spans of floats": (
        *("llama", altered("long", inputs__spans=typed(np.float64))),
        "its recorded spans are float64, not int64",
    ),
    "spans beyond the text": (
        *("llama", altered("long", inputs__spans=lambda array: array + 10**6)),
        "none of its prompts fits the ",
    ),
    "spans from nowhere": (
        *("llama", altered("long", inputs__spans=lambda array: array * [[0, 1]])),
        "its recorded tokens and logits do not fit together",
    ),
    "no long tokens": (
        *("llama", altered("long", inputs__tokens=lambda array: array[:0])),
        "its recorded tokens and logits do not fit together",
    ),
    "depths of floats": (
        *("llama-halting", altered("halting", outputs__depth_used=typed(np.float32))),
        "its recorded depths are float32, not int64",
    ),
    "mask of a shape": (
        "llama-halting",
        altered(
            "halting",
            outputs__depth_used=lambda array: np.concatenate([array[:-1], array[-1:] % 4 + 1]),
            valid__logits=lambda _: np.ones(3, bool),
        ),
        "its mask of valid entries has the wrong shape",
    ),
    "scores of one step": (
        "llama-halting",
        altered(
            "halting",
            outputs__depth_used=lambda array: array % 4 + 1,
            outputs__halt_scores=lambda array: array[:, :1],
        ),
        "",
    ),
    "depths of none": (
        *("llama-halting", altered("halting", outputs__depth_used=lambda array: array * 0)),
        "",
    ),
}
