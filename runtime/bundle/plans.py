"""What a bundle says about a TensorRT plan, and whether that plan may be loaded here.

A plan is machine code for one TensorRT version and certain GPUs. It is compared with the machine,
with the graph it was built from and with its hash before a byte of it is handed to TensorRT.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.backends.gpu import Gpu, describe_gpu, has_cuda_bindings
from runtime.backends.trt_flavours import FLAVOURS, Installed, find_flavours
from runtime.errors import BundleError, EngineError


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
class EngineSpec:
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
        depth_shape: of the plan's input `depth`, (1,) as Triton wants it; the bundle's graph has a
            scalar.
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
    depth_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a bundle meets.

    Attributes:
        gpu: the GPU, if there is one.
        installed: the TensorRTs.
        cuda_bindings: the CUDA runtime for Python is installed.
    """

    gpu: Gpu | None
    installed: tuple[Installed, ...]
    cuda_bindings: bool = True


def describe_machine() -> Machine:
    """This machine."""
    return Machine(describe_gpu(), find_flavours(), has_cuda_bindings())


def hash_graph(file_hashes: Mapping[str, str]) -> str:
    """One sha256 for an ONNX graph and its data files.

    Args:
        file_hashes: sha256 by file name, of the .onnx file and every file of its weights.
    """
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(file_hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def check_engine_graph(spec: EngineSpec, file_hashes: Mapping[str, str]) -> None:
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
            f"{found[:12]}...: they come from different checkpoints; export it again"
        )


def check_engine_fits(spec: EngineSpec, machine: Machine) -> Installed:
    """Refuses a plan that this machine can't run, naming both sides.

    Returns:
        The TensorRT to run it with.

    Raises:
        BundleError: a flavour that this version does not know.
        EngineError: no such TensorRT or GPU here, or another version, CUDA or compute capability.
    """
    flavour = FLAVOURS.get(spec.flavour)
    if flavour is None:
        raise BundleError(
            f"{spec.file} is for {spec.flavour!r}, known here: {', '.join(FLAVOURS)}; "
            "update ouroboros"
        )
    installed = next((one for one in machine.installed if one.flavour == flavour), None)
    if installed is None:
        raise EngineError(
            f"{spec.file} needs {flavour.title} {spec.version}, which is not installed; "
            f"{flavour.install}, or take --backend cpu"
        )
    if installed.version != spec.version:
        raise EngineError(
            f"{spec.file} was built with {flavour.title} {spec.version}, installed here is "
            f"{installed.version}; install that version or export again with --format trt"
        )
    gpu = machine.gpu
    if gpu is None:
        raise EngineError(
            f"{spec.file} needs an NVIDIA GPU of compute capability "
            f"{_listed(spec.compute_capabilities)}, and CUDA shows none here; "
            "take --backend cpu"
        )
    if gpu.compute_capability not in spec.compute_capabilities:
        raise EngineError(
            f"{spec.file} was built for compute capability {_listed(spec.compute_capabilities)}, "
            f"{gpu.name} has {gpu.compute_capability}; export again with --compute-capability "
            f"{gpu.compute_capability}"
        )
    if major_cuda(gpu.cuda) < major_cuda(spec.cuda):
        raise EngineError(
            f"{spec.file} needs CUDA {spec.cuda}, the driver of {gpu.name} runs CUDA up to "
            f"{gpu.cuda}; update the NVIDIA driver"
        )
    return installed


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
        raise BundleError(f"cannot read {file}: {error.strerror or error}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise BundleError(
            f"{file} is damaged or was changed: sha256 {digest[:12]}..., its manifest says "
            f"{sha256[:12]}...; it was not loaded; copy or export it again"
        )
    return data


def _listed(names: Sequence[str]) -> str:
    return " or ".join(names) or "none"


def major_cuda(cuda: str) -> int:
    """The major number of a CUDA version, 0 where there is none."""
    major = cuda.partition(".")[0]
    return int(major) if major.isdigit() else 0
