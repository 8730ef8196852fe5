"""The rows of the GPU benchmark, how they are printed, and the device they were measured on."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bench.measure import PACKAGES
from cli.errors import CommandError
from cli.output import write_json
from runtime.measure.speed import describe_machine


@dataclasses.dataclass(frozen=True)
class SpeedRow:
    """Medians of one subject at one shape.

    Attributes:
        precision: of the weights.
        subject: "cuda", "trt", "cpu", or "pytorch", which took turns with them.
        depth: recurrences.
        batch: rows.
        context: tokens in the cache before the first one timed.
        decode_ms: time of one token of every row.
        tokens_per_s: of all rows together.
        prefill_tokens_per_s: likewise, while the context was fed.
        engine_overhead: share of a token's time outside ONNX Runtime or TensorRT; 0 for PyTorch.
        host_bytes: copied between host and device a token of every row; None where not counted.
    """

    precision: str
    subject: str
    depth: int
    batch: int
    context: int
    decode_ms: float
    tokens_per_s: float
    prefill_tokens_per_s: float
    engine_overhead: float
    host_bytes: int | None


@dataclasses.dataclass(frozen=True)
class ParityRow:
    """The parity check of one precision on one backend, or why there is none.

    Attributes:
        precision: of the bundle.
        backend: "cuda", "trt" or "cpu".
        verdict: PASS, AMBIGUOUS or FAIL; ERROR where it could not run.
        worst_relative_l2: of the logits; None where it could not run.
        reason: why it could not run; empty where it did.
    """

    precision: str
    backend: str
    verdict: str
    worst_relative_l2: float | None
    reason: str


def describe_device() -> dict[str, Any]:
    """The GPU, its driver, the processor and every version that matters."""
    from runtime.backends.machine import find_machine
    from runtime.backends.ort_library import load_onnxruntime

    here = describe_machine((*PACKAGES, "onnxruntime-gpu", "cuda-bindings"))
    machine = find_machine()
    here["gpu"] = None if machine.gpu is None else dataclasses.asdict(machine.gpu)
    here["driver"] = read_driver()
    # Two packages bring the module onnxruntime, and either may be the one that is imported.
    here["versions"]["onnxruntime"] = load_onnxruntime().__version__
    here["versions"] |= {one.flavour.name: one.version for one in machine.installed}
    return here


def read_driver() -> str:
    """The version of NVIDIA's driver; "unknown" where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.partition("\n")[0].strip() or "unknown"


def print_tables(
    parity: Sequence[ParityRow], speeds: Sequence[SpeedRow], device: dict[str, Any]
) -> None:
    """Prints parity, speeds, and what they were measured on.

    Args:
        parity: one row a precision and backend.
        speeds: one row a precision, subject and shape.
        device: from `describe_device`.
    """
    print(f"{'':<6}{'backend':<9}{'verdict':<11}worst relative L2")
    for one in parity:
        worst = "" if one.worst_relative_l2 is None else f"{one.worst_relative_l2:.1e}"
        print(f"{one.precision:<6}{one.backend:<9}{one.verdict:<11}{worst or one.reason}")
    if speeds:
        print_speeds(speeds)
    gpu = device["gpu"]
    shown = "no GPU" if gpu is None else f"{gpu['name']} ({gpu['compute_capability']})"
    print(f"\n{shown}, driver {device['driver']}, {device['processor']}")
    print(", ".join(f"{name} {number}" for name, number in device["versions"].items()))


def print_speeds(speeds: Sequence[SpeedRow]) -> None:
    """Prints the times.

    Args:
        speeds: one row a precision, subject and shape.
    """
    print(
        f"\n{'':<6}{'':<14}{'depth':>6}{'batch':>6}{'context':>8}{'ms/token':>10}{'tokens/s':>10}"
        f"{'prefill/s':>11}{'overhead':>9}{'copied':>10}"
    )
    for row in speeds:
        print(
            f"{row.precision:<6}{row.subject:<14}{row.depth:>6}{row.batch:>6}{row.context:>8}"
            f"{row.decode_ms:>10.3f}{row.tokens_per_s:>10.1f}{row.prefill_tokens_per_s:>11.0f}"
            f"{row.engine_overhead:>9.1%}{'' if row.host_bytes is None else row.host_bytes:>10}"
        )


def result_name(device: dict[str, Any]) -> str:
    """Name of the file that keeps a device's figures: after its GPU, else its processor.

    Args:
        device: from `describe_device`.
    """
    gpu = device["gpu"]
    name = device["processor"] if gpu is None else gpu["name"]
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def read_results(file: Path) -> dict[str, Any]:
    """The figures of a file that `write_part` writes; nothing where there is none.

    Raises:
        CommandError: it is no JSON object.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CommandError(f"{file} holds no figures that can be read", "move it away")
    return found


def write_part(
    file: Path,
    part: str,
    rows: Sequence[ParityRow | SpeedRow],
    how: dict[str, Any],
    asked: Collection[tuple[str, str]] = (),
) -> None:
    """Puts rows of one part of the figures into a file; all other parts stay.

    Of the part itself others' rows stay too where they were measured in the same way, on another
    day perhaps: `date` then names every day. Else they all go.

    Args:
        file: is made where it is not there.
        part: "parity", "speed" or "untimed".
        rows: the figures.
        how: they were measured: `date`, `checkpoint`, its hash, `device` and whatever else counts;
            kept as `measured` of the part, since other parts may be of another day. A part without
            one is of the `device` that the file itself names.
        asked: precisions and backends whose rows go in any case, beside those of `rows`.
    """
    found = read_results(file)
    if not rows and part not in found:
        return
    figures = [dataclasses.asdict(row) for row in rows]
    measured = found.get("measured", {})
    before = measured.get(part, {})
    if before | {"date": ""} == how | {"date": ""}:
        replaced = {*asked, *map(_pair, figures)}
        if others := [row for row in found[part] if _pair(row) not in replaced]:
            figures = others + figures
            days = {*before.get("date", how["date"]).split(", "), *how["date"].split(", ")}
            how = how | {"date": ", ".join(sorted(days))}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, found | {part: figures, "measured": measured | {part: how}})


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    """The precision of a row, and its backend or subject."""
    return row["precision"], row["subject"] if "subject" in row else row["backend"]


def has_tensorrt(device: dict[str, Any]) -> bool:
    """Whether a TensorRT is installed.

    Args:
        device: from `describe_device`.
    """
    return not {"tensorrt", "tensorrt_rtx"}.isdisjoint(device["versions"])
