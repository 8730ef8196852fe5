"""The two TensorRTs: which is installed, in what version, and which to take.

`tensorrt` builds on the GPU it will run on and knows the data-centre GPUs; `tensorrt_rtx` builds
ahead of time, without a GPU, for GeForce and RTX cards. Their Python modules have one API, so that
everything else takes the module as an argument. Nothing here imports either to look at it.
"""

from __future__ import annotations

import dataclasses
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from runtime.backends.gpu import Gpu
from runtime.errors import EngineError

CHOICES = ("auto", "trt", "rtx")
_CUDA_MAJORS = ("13", "12")


@dataclasses.dataclass(frozen=True)
class Flavour:
    """One of the two.

    Attributes:
        name: as the manifest writes it.
        option: as `--trt` takes it.
        title: as messages write it.
        modules: names it can be imported by, the first one found counts.
        install: the command that brings it.
    """

    name: str
    option: str
    title: str
    modules: tuple[str, ...]
    install: str


TENSORRT = Flavour("tensorrt", "trt", "TensorRT", ("tensorrt",), "pip install tensorrt-cu13")
RTX = Flavour(
    "tensorrt_rtx",
    "rtx",
    "TensorRT for RTX",
    ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, RTX)}


@dataclasses.dataclass(frozen=True)
class Installed:
    """A flavour as it is installed here.

    Attributes:
        flavour: which.
        module: the name to import.
        version: of the bindings; empty where no package says it.
        libraries: version of the libraries' own package; empty where the two come together.
        cuda: the major CUDA version it was built for; empty where no package says it.
    """

    flavour: Flavour
    module: str
    version: str
    libraries: str
    cuda: str


def find_flavour(flavour: Flavour) -> Installed | None:
    """What is installed of a flavour, from the packages' metadata; None where nothing is."""
    module = next((name for name in flavour.modules if find_spec(name) is not None), None)
    if module is None:
        return None
    for cuda in _CUDA_MAJORS:
        base = f"{flavour.name}_cu{cuda}"
        found = _version(f"{base}_bindings") or _version(base)
        if found:
            return Installed(flavour, module, found, _version(f"{base}_libs"), cuda)
    return Installed(flavour, module, _version(flavour.name), "", "")


def find_flavours() -> tuple[Installed, ...]:
    """Every flavour that is installed."""
    found = (find_flavour(flavour) for flavour in FLAVOURS.values())
    return tuple(one for one in found if one is not None)


def choose_flavour(
    choice: str, ahead_of_time: bool, gpu: Gpu | None, installed: tuple[Installed, ...]
) -> Installed:
    """The flavour to build with.

    Args:
        choice: of CHOICES; `auto` takes the only one there is, and of both TensorRT for RTX where
            it is to build ahead of time or there is no GPU, else TensorRT.
        ahead_of_time: the user named compute capabilities.
        gpu: of this machine.
        installed: from `find_flavours`.

    Raises:
        EngineError: an unknown choice, or what was chosen is not installed.
    """
    if choice not in CHOICES:
        raise EngineError(
            f"the TensorRT flavour {choice!r:.60} is not known", f"allowed: {', '.join(CHOICES)}"
        )
    if not installed:
        raise EngineError(
            "no TensorRT is installed",
            f"{RTX.install} brings {RTX.title} (GeForce and RTX GPUs, "
            f"builds without one), {TENSORRT.install} brings {TENSORRT.title} (data-centre GPUs, "
            "builds on the GPU)",
        )
    by_option = {one.flavour.option: one for one in installed}
    if choice == "auto":
        wanted = RTX if ahead_of_time or gpu is None else TENSORRT
        return by_option.get(wanted.option, installed[0])
    if choice not in by_option:
        missing = next(f for f in FLAVOURS.values() if f.option == choice)
        raise EngineError(
            f"{missing.title} is not installed",
            f"{missing.install}, or take --trt {installed[0].flavour.option}",
        )
    return by_option[choice]


def load_module(installed: Installed) -> Any:
    """Imports a flavour's Python module.

    Raises:
        EngineError: its libraries can't be loaded, or are of another version.
    """
    check_libraries(installed)
    try:
        return import_module(installed.module)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EngineError(
            f"{installed.flavour.title} is installed but can't be loaded: {reason}",
            f"install it again: {installed.flavour.install}",
        ) from error


def check_libraries(installed: Installed) -> None:
    """Refuses bindings whose libraries are of another version.

    Raises:
        EngineError: they differ; names both.
    """
    if installed.libraries and installed.libraries != installed.version:
        raise EngineError(
            f"{installed.flavour.title}: the bindings are {installed.version}, the libraries "
            f"{installed.libraries}",
            f"install both in one version: {installed.flavour.install}",
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
