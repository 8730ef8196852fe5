"""The recorded cases of a bundle: inputs of the graph and what PyTorch made of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from runtime.bundle.rules import MAX_DEPTH, shorten
from runtime.errors import BundleError

KINDS = ("prefill", "decode", "padded", "mixed", "greedy", "far", "long")
EVERY_DEPTH = ("prefill", "decode", "padded")  # kinds that every depth needs
REQUIRED = (*EVERY_DEPTH, "mixed", "greedy", "far", "long")  # kinds that a recording needs

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded call of the graph, or a greedy continuation.

    Attributes:
        name: unique among the cases.
        kind: one of KINDS.
        depth: steps the loop runs.
        positions: place in the sequence of each position asked for; may be empty.
        after: the case whose new keys and values are this one's past, or None.
        inputs: by the graph's names.
        outputs: PyTorch's in float64, rounded to float32, by the graph's names.
        valid: boolean masks of the entries to compare, by output; missing where all are.
        reference_error: by output, the error against `outputs` that PyTorch itself makes in the
            bundle's precision (`runtime.parity.metrics.output_error`); infinite where it overflows.
    """

    name: str
    kind: str
    depth: int
    positions: tuple[int, ...]
    after: str | None
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    valid: Mapping[str, Array]
    reference_error: Mapping[str, float] = dataclasses.field(default_factory=dict)


def load_cases(file: Path) -> list[Case]:
    """Reads recorded cases from a safetensors file.

    Raises:
        BundleError: not such a file, or its list of cases is not understood.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise BundleError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    try:
        entries = json.loads(metadata["cases"])
    except (KeyError, ValueError) as error:
        raise BundleError(f"{file} holds no list of cases; export the bundle again") from error
    return make_cases(tensors, entries)


def make_cases(tensors: Mapping[str, Array], entries: object) -> list[Case]:
    """Sorts flat tensors into cases.

    Args:
        tensors: `{case}.in.{input}`, `{case}.out.{output}` and `{case}.valid.{output}`.
        entries: name, kind, depth, positions and perhaps `after` of each case.

    Raises:
        BundleError: an entry is not understood, or a tensor belongs to none.
    """
    if not isinstance(entries, list):
        raise BundleError("the list of recorded cases is not a list; export the bundle again")
    parts: dict[str, dict[str, dict[str, Array]]] = {}
    for name, tensor in tensors.items():
        case, part, rest = _split(name)
        parts.setdefault(case, {"in": {}, "out": {}, "valid": {}})[part][rest] = tensor
    cases: list[Case] = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise BundleError("a recorded case has no name; export the bundle again")
        name, kind, depth = entry["name"], entry.get("kind"), entry.get("depth")
        if kind not in KINDS or type(depth) is not int or not 1 <= depth <= MAX_DEPTH:
            raise BundleError(
                f"the recorded case {name} has kind {shorten(kind)} and depth {shorten(depth)}"
            )
        if name not in parts:
            raise BundleError(f"the recorded case {name} is listed twice or has no tensors")
        own = parts.pop(name)
        positions = entry.get("positions") or []
        if not isinstance(positions, list) or not all(type(p) is int and p >= 0 for p in positions):
            raise BundleError(f"the recorded case {name} has no list of positions")
        after = entry.get("after")
        if after is not None and after not in {case.name for case in cases}:
            raise BundleError(f"the recorded case {name} follows {after!r}, which is not before it")
        errors = entry.get("reference_error") or {}
        if not isinstance(errors, Mapping) or not all(
            e is None or (type(e) is float and 0 <= e < math.inf) for e in errors.values()
        ):
            raise BundleError(f"the recorded case {name} has errors that are no numbers above 0")
        parts_of = (own["in"], own["out"], own["valid"])
        known = {output: math.inf if e is None else e for output, e in errors.items()}
        cases.append(Case(name, kind, depth, tuple(positions), after, *parts_of, known))
    if parts:
        raise BundleError(f"the recorded case {min(parts)} has tensors but is not in the list")
    return cases


def _split(name: str) -> tuple[str, str, str]:
    for part in ("in", "out", "valid"):
        case, found, rest = name.partition(f".{part}.")
        if found:
            return case, part, rest
    raise BundleError(f"the recorded tensor {name} belongs to no case; export the bundle again")
