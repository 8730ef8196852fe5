"""Which TensorRT builds plans on this machine, and for which GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import ExportError
from export.options import TrtOptions
from export.tensorrt.options import choose_capabilities
from runtime.backends.gpu import Gpu, describe_gpu
from runtime.backends.trt_flavours import (
    RTX,
    Installed,
    check_libraries,
    choose_flavour,
    find_flavours,
)
from runtime.errors import EngineError


@dataclass(frozen=True)
class Target:
    """What plans are built with, and for.

    Attributes:
        installed: the TensorRT.
        capabilities: compute capabilities of the GPUs that they will run on.
        gpu: of this machine.
    """

    installed: Installed
    capabilities: tuple[str, ...]
    gpu: Gpu | None


def choose_target(options: TrtOptions) -> Target:
    """Chooses a TensorRT and the compute capabilities, from what this machine has.

    Args:
        options: the user's.

    Raises:
        ExportError: no TensorRT that fits is installed, or there is no GPU where one is needed.
    """
    gpu = describe_gpu()
    installed = choose_builder(options, gpu)
    flavour = installed.flavour
    capabilities = choose_capabilities(options, flavour, gpu)
    if options.refit and gpu is None:
        raise ExportError(
            f"refit: {flavour.title} compiles replaceable weights on a GPU, and CUDA shows none "
            "here",
            "build on the GPU's machine or leave --refit out",
        )
    return Target(installed, capabilities, gpu)


def choose_builder(options: TrtOptions, gpu: Gpu | None) -> Installed:
    """The TensorRT that `build_plans` takes.

    Args:
        options: the user's.
        gpu: of this machine.

    Raises:
        ExportError: none that fits is installed, or not as a whole, or it does not do what the
            options ask for.
    """
    try:
        chosen = choose_flavour(
            options.flavour, bool(options.compute_capabilities), gpu, find_flavours()
        )
        check_libraries(chosen)
    except EngineError as error:
        raise ExportError(error.problem, error.cure) from error
    # Its functions are there, but do nothing since version 1.2 (its guide, "Timing Cache").
    if options.timing_cache is not None and chosen.flavour == RTX:
        raise ExportError(
            f"timing_cache: {RTX.title} times no kernels while it builds and keeps no such file",
            "leave the option out, or take --trt trt",
        )
    return chosen
