"""What a bundle says about a TensorRT plan.

A plan is machine code for one TensorRT version and certain GPUs. It is compared with the graph it
was built from, with its hash, and with the machine (`runtime.backends.machine`) before a byte of it
is handed to TensorRT.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from runtime.bundle.cures import UNREADABLE
from runtime.errors import BundleError


@dataclasses.dataclass(frozen=True)
class RangeSpec:
    """What one input may be: the least, the best served and the most of each number."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ProfileSpec:
    """One optimisation profile.

    Attributes:
        name: "decode" or "prefill".
        shapes: the shape of every input that has one which varies.
        values: the values, one an element, of inputs whose value decides shapes: `depth`.
    """

    name: str
    shapes: tuple[RangeSpec, ...]
    values: tuple[RangeSpec, ...]


@dataclasses.dataclass(frozen=True)
class PlanSpec:
    """One plan of a bundle.

    Attributes:
        file: its name in the bundle.
        flavour: "tensorrt" or "tensorrt_rtx".
        version: of the TensorRT that built it and must run it.
        cuda: the CUDA version it needs, "13" or "13.0".
        compute_capabilities: of the GPUs it runs on, such as "8.9".
        precision: the bundle's.
        refittable: its weights can be replaced.
        graph_sha256: of the ONNX files it was built from, see `hash_graph`.
        profiles: in the plan's own order.
        max_new_tokens: most tokens a row that one call takes.
        max_logits: most positions a row whose logits one call gives.
    """

    file: str
    flavour: str
    version: str
    cuda: str
    compute_capabilities: tuple[str, ...]
    precision: str
    refittable: bool
    graph_sha256: str
    profiles: tuple[ProfileSpec, ...]
    max_new_tokens: int
    max_logits: int


def hash_graph(file_hashes: Mapping[str, str]) -> str:
    """One sha256 for an ONNX graph and its data files.

    Args:
        file_hashes: sha256 by file name, of the .onnx file and every file of its weights.
    """
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(file_hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def check_plan_graph(spec: PlanSpec, file_hashes: Mapping[str, str]) -> None:
    """Refuses a plan that was built from other weights than its bundle's graph holds.

    Args:
        spec: the plan.
        file_hashes: as for `hash_graph`, from the bundle's manifest.

    Raises:
        BundleError: they differ.
    """
    found = hash_graph(file_hashes)
    if found != spec.graph_sha256:
        raise BundleError(
            f"{spec.file} was built from the graph {spec.graph_sha256[:12]}..., the bundle holds "
            f"{found[:12]}...: they come from different checkpoints",
            "export it again",
        )


def read_plan(file: Path, sha256: str) -> bytes:
    """Reads a plan, once, and only hands it out if its hash is right.

    Args:
        file: the plan.
        sha256: from the bundle's manifest.

    Raises:
        BundleError: it can't be read or differs by as much as a bit.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {file}: {error.strerror or error}", UNREADABLE) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise BundleError(
            f"{file} is damaged or was changed: sha256 {digest[:12]}..., its manifest says "
            f"{sha256[:12]}...; it was not loaded",
            "copy or export it again",
        )
    return data
