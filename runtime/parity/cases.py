"""Cases and results: what is run, and what came of it.

A case holds inputs of the graph and what PyTorch made of them; it is what a bundle stores. A result
is what anything gave for a case: PyTorch, a backend, another precision, another release.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.contract import HALT_THRESHOLD
from runtime.bundle.cures import COPY_AGAIN, EXPORT_AGAIN
from runtime.bundle.rules import INT64, shorten
from runtime.bundle.strict_json import read_json
from runtime.depths import MAX_DEPTH
from runtime.errors import BundleError

KINDS = ("prefill", "decode", "padded", "mixed", "greedy", "far", "long", "halting")
EVERY_DEPTH = ("prefill", "decode", "padded")  # kinds that every depth needs
REQUIRED = (*EVERY_DEPTH, "mixed", "greedy", "far", "long")  # kinds that a recording needs
HALTING = "halting"  # and, where the model has a halter, this one
HALT_SCORES = "halt_scores"
"""PyTorch's halting score after each step, float32 [batch, depth]: no output of the graph."""

TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "bool")
"""Element types that a recorded tensor may have."""

UNFIT = "its recorded tokens and logits do not fit together"
"""What is said of a greedy or a long case that can't be run or compared."""

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
        inputs: by the graph's names. Of a greedy case `prompt` int64 [n]; of a long one `tokens`
            int64 [n] and `spans` int64 [k, 2]: how many of them are a prompt, and where it ends.
        outputs: PyTorch's in float64, rounded to float32, by the graph's names. Of a greedy case
            `tokens` int64 [n] and `top2` float32 [n, 2], as in a `Result`; of a halting one
            HALT_SCORES too.
        valid: boolean masks of the entries to compare, by output; missing where all are.
        reference_error: by output, the error against `outputs` that PyTorch itself makes in the
            bundle's precision (`worst_relative_l2` of a Measurement); infinite where it overflows.
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


@dataclasses.dataclass(frozen=True)
class Result:
    """What one case gave, whoever ran it: plain arrays, to be compared with another's.

    Attributes:
        case: the case's name.
        kind: one of KINDS.
        depth: steps the loop ran.
        outputs: by the graph's names; the cache's of prelude and coda are left out. Of a greedy
            case `tokens` int64 [n], the best token after each of the text's before, and `top2`
            float [n, 2], the logits of the text's own token and of the best other one; NaN where
            any logit was no finite number.
        positions: place in the sequence of each position of the logits; may repeat in a long case,
            and be empty where it is their number.
        valid: of a reference, boolean masks of the entries to compare, by output; missing where
            all are.
        reference_error: of a reference, by output, the error that itself is known to make.
        failure: why there are no outputs; empty where there are.
        threshold: of a reference, of the halting score; None without a halter.
    """

    case: str
    kind: str
    depth: int
    outputs: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    positions: tuple[int, ...] = ()
    valid: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    reference_error: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failure: str = ""
    threshold: float | None = None


def recorded_results(cases: Iterable[Case]) -> list[Result]:
    """PyTorch's results, as the cases hold them: the reference for `runtime.parity.verdict`."""
    return [
        Result(
            case.name,
            case.kind,
            case.depth,
            case.outputs,
            case.positions,
            case.valid,
            case.reference_error,
            threshold=_threshold(case.inputs.get(HALT_THRESHOLD)),
        )
        for case in cases
    ]


def _threshold(given: Array | None) -> float | None:
    return None if given is None or not given.size else float(given.reshape(-1)[0])


def save_cases(cases: Sequence[Case], file: Path) -> str:
    """Writes cases to a safetensors file, as `load_cases` reads them.

    Args:
        cases: each after the one that it follows, if it does.
        file: what is there is overwritten.

    Returns:
        The sha256 of what was written.

    Raises:
        OSError: the file can't be written.
    """
    from safetensors.numpy import save

    tensors, entries = flatten_cases(cases)
    content = save(tensors, metadata={"cases": json.dumps(entries, allow_nan=False)})
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


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
        raise BundleError(
            f"{file} cannot be read: {' '.join(str(error).split())}",
            COPY_AGAIN,
        ) from error
    try:
        entries = read_json(metadata["cases"])
    except (KeyError, ValueError) as error:
        raise BundleError(f"{file} holds no list of cases", EXPORT_AGAIN) from error
    return make_cases(tensors, entries)


def flatten_cases(cases: Iterable[Case]) -> tuple[dict[str, Array], list[dict[str, Any]]]:
    """The tensors and entries that `make_cases` makes the same cases of."""
    tensors: dict[str, Array] = {}
    entries: list[dict[str, Any]] = []
    for case in cases:
        parts = {"in": case.inputs, "out": case.outputs, "valid": case.valid}
        for part, named in parts.items():
            for name, tensor in named.items():
                tensors[f"{case.name}.{part}.{name}"] = np.ascontiguousarray(tensor)
        entry: dict[str, Any] = {"name": case.name, "kind": case.kind, "depth": case.depth}
        if case.positions:
            entry["positions"] = list(case.positions)
        if case.after is not None:
            entry["after"] = case.after
        # JSON knows no infinity.
        entry["reference_error"] = {
            output: None if math.isinf(error) else error
            for output, error in case.reference_error.items()
        }
        entries.append(entry)
    return tensors, entries


def make_cases(tensors: Mapping[str, Array], entries: object) -> list[Case]:
    """Sorts flat tensors into cases.

    Args:
        tensors: `{case}.in.{input}`, `{case}.out.{output}` and `{case}.valid.{output}`.
        entries: name, kind, depth, positions and perhaps `after` of each case.

    Raises:
        BundleError: an entry is not understood, or a tensor belongs to none.
    """
    if not isinstance(entries, list):
        raise BundleError("the list of recorded cases is not a list", EXPORT_AGAIN)
    parts: dict[str, dict[str, dict[str, Array]]] = {}
    for name, tensor in tensors.items():
        case, part, rest = _split(name)
        if tensor.dtype.name not in TYPES:
            raise BundleError(f"the recorded tensor {name} is {tensor.dtype.name}", EXPORT_AGAIN)
        parts.setdefault(case, {"in": {}, "out": {}, "valid": {}})[part][rest] = tensor
    cases: list[Case] = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise BundleError("a recorded case has no name", EXPORT_AGAIN)
        name, kind, depth = entry["name"], entry.get("kind"), entry.get("depth")
        if kind not in KINDS or type(depth) is not int or not 1 <= depth <= MAX_DEPTH:
            raise BundleError(
                f"the recorded case {name} has kind {shorten(kind)} and depth {shorten(depth)}",
                EXPORT_AGAIN,
            )
        if name not in parts:
            raise BundleError(
                f"the recorded case {name} is listed twice or has no tensors", EXPORT_AGAIN
            )
        own = parts.pop(name)
        positions = [] if (found := entry.get("positions")) is None else found
        if not isinstance(positions, list) or not all(
            type(p) is int and 0 <= p <= INT64 for p in positions
        ):
            raise BundleError(f"the recorded case {name} has no list of positions", EXPORT_AGAIN)
        after = entry.get("after")
        if after is not None and after not in [case.name for case in cases]:
            raise BundleError(
                f"the recorded case {name} follows {shorten(after)}, which is not before it",
                EXPORT_AGAIN,
            )
        errors = {} if (found := entry.get("reference_error")) is None else found
        if not isinstance(errors, Mapping) or not all(
            e is None or (type(e) is float and 0 <= e < math.inf) for e in errors.values()
        ):
            raise BundleError(
                f"the recorded case {name} has errors that are no numbers above 0", EXPORT_AGAIN
            )
        parts_of = (own["in"], own["out"], own["valid"])
        known = {output: math.inf if e is None else e for output, e in errors.items()}
        cases.append(Case(name, kind, depth, tuple(positions), after, *parts_of, known))
    if parts:
        raise BundleError(
            f"the recorded case {min(parts)} has tensors but is not in the list", EXPORT_AGAIN
        )
    return cases


def _split(name: str) -> tuple[str, str, str]:
    for part in ("in", "out", "valid"):
        case, found, rest = name.partition(f".{part}.")
        if found:
            return case, part, rest
    raise BundleError(f"the recorded tensor {name} belongs to no case", EXPORT_AGAIN)
