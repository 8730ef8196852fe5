"""What this machine is, and whether a plan of a bundle may be loaded here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from runtime.backends.gpu import Gpu, describe_gpu, has_cuda_bindings
from runtime.backends.trt_flavours import FLAVOURS, Installed, find_flavours
from runtime.bundle.plans import PlanSpec
from runtime.errors import BundleError, EngineError


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


def find_machine() -> Machine:
    """Looks for what can run a bundle here: the GPU, the TensorRTs, the CUDA runtime for Python."""
    return Machine(describe_gpu(), find_flavours(), has_cuda_bindings())


def check_plan_fits(spec: PlanSpec, machine: Machine) -> Installed:
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
            f"{spec.file} is for {spec.flavour!r}, known here: {', '.join(FLAVOURS)}",
            "update ouroboros",
        )
    installed = next((one for one in machine.installed if one.flavour == flavour), None)
    if installed is None:
        raise EngineError(
            f"{spec.file} needs {flavour.title} {spec.version}, which is not installed",
            flavour.install,
        )
    if installed.version != spec.version:
        raise EngineError(
            f"{spec.file} was built with {flavour.title} {spec.version}, installed here is "
            f"{installed.version}",
            "install that version or export again with --format trt",
        )
    gpu = machine.gpu
    if gpu is None:
        raise EngineError(
            f"{spec.file} needs an NVIDIA GPU of compute capability "
            f"{_listed(spec.compute_capabilities)}, and CUDA shows none here",
            "take backend cpu",
        )
    if gpu.compute_capability not in spec.compute_capabilities:
        raise EngineError(
            f"{spec.file} was built for compute capability {_listed(spec.compute_capabilities)}, "
            f"{gpu.name} has {gpu.compute_capability}",
            f"export again with --compute-capability {gpu.compute_capability}",
        )
    if major_cuda(gpu.cuda) < major_cuda(spec.cuda):
        raise EngineError(
            f"{spec.file} needs CUDA {spec.cuda}, the driver of {gpu.name} runs CUDA up to "
            f"{gpu.cuda}",
            "update the NVIDIA driver",
        )
    return installed


def _listed(names: Sequence[str]) -> str:
    return " or ".join(names) or "none"


def major_cuda(cuda: str) -> int:
    """The major number of a CUDA version, 0 where there is none."""
    major = cuda.partition(".")[0]
    return int(major) if major.isdigit() else 0
