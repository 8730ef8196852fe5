"""Which backend a bundle runs on: TensorRT, CUDA or the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.backends.gpu import INSTALL_BINDINGS, INSTALL_CUDA
from runtime.backends.machine import Machine, check_plan_fits, find_machine
from runtime.backends.ort import check_cpu, open_cpu
from runtime.backends.ort_cuda import PROVIDER, open_cuda
from runtime.backends.ort_library import load_onnxruntime
from runtime.backends.trt import open_plan
from runtime.bundle.manifest import ACCURACY_LEVELS, Manifest
from runtime.errors import BundleError, EngineError

if TYPE_CHECKING:
    from runtime.backends.memory import Backend
    from runtime.bundle.plans import PlanSpec
    from runtime.bundle.reader import Bundle

BACKENDS = ("auto", "cpu", "cuda", "trt")


def check_choice(backend: str, threads: int | None, accuracy_level: int | None = None) -> None:
    """Refuses what no bundle can be opened with; arguments as for `open_backend`.

    Raises:
        EngineError: an unknown backend, level or number of threads.
    """
    if backend not in BACKENDS:
        raise EngineError(f"backend={backend!r} is not known", f"allowed: {', '.join(BACKENDS)}")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
        raise EngineError(f"threads={threads!r} is not a number of threads", "allowed: 1..1024")
    if accuracy_level not in (None, *ACCURACY_LEVELS):
        raise EngineError(
            f"accuracy_level={accuracy_level!r} is not known", "allowed: 1, 4 or None"
        )


def require_backend(
    manifest: Manifest, backend: str, threads: int | None, accuracy_level: int | None = None
) -> None:
    """Refuses what `open_backend` would, but for a damaged bundle: before long work that needs it.

    Raises:
        EngineError: an unknown backend, level or number of threads, or one that can't run here.
        BundleError: no plan is of a flavour that this version knows.
    """
    check_choice(backend, threads, accuracy_level)
    if backend != "cpu":
        backend = choose_backend(manifest, backend, find_machine(), list_providers())
    if backend == "cpu":
        check_cpu(manifest)


def open_backend(
    bundle: Bundle, backend: str, threads: int | None, accuracy_level: int | None = None
) -> Backend:
    """Loads a verified bundle.

    Args:
        bundle: from `open_bundle`.
        backend: of BACKENDS; "auto" takes TensorRT where a plan of the bundle fits this machine,
            else CUDA, else the CPU.
        threads: threads inside an operator of ONNX Runtime; None lets it use every core.
        accuracy_level: of quantised products on the CPU, 1 or 4; None takes the manifest's.

    Raises:
        EngineError: an unknown backend or number of threads, or one that can't run here.
        BundleError: the graph or plan does not load or is not the one its manifest describes.
    """
    check_choice(backend, threads, accuracy_level)
    manifest = bundle.manifest
    if backend == "cpu":
        return open_cpu(bundle, threads, accuracy_level)
    machine = find_machine()
    chosen = choose_backend(manifest, backend, machine, list_providers())
    if chosen == "cpu":
        return open_cpu(bundle, threads, accuracy_level)
    if chosen == "cuda":
        return open_cuda(bundle, threads, accuracy_level)
    plan = choose_plan(manifest.plans, machine)
    sha256 = manifest.files[plan.file].sha256
    return open_plan(bundle.file(plan.file), plan, manifest.graphs.onnx, sha256, machine)


def list_providers() -> Sequence[str]:
    """The execution providers that this ONNX Runtime was built with."""
    providers: list[str] = load_onnxruntime().get_available_providers()
    return providers


def choose_backend(
    manifest: Manifest, backend: str, machine: Machine, providers: Sequence[str]
) -> str:
    """The backend to open: "cpu", "cuda" or "trt".

    Args:
        manifest: the bundle's.
        backend: of BACKENDS. One that is named is never replaced by another.
        machine: from `find_machine`.
        providers: from `list_providers`.

    Raises:
        EngineError: the named one can't run here; says what to do.
    """
    if backend == "trt":
        choose_plan(manifest.plans, machine)
    elif backend == "cuda":
        _check_cuda(machine, providers)
    elif backend == "auto":
        try:
            choose_plan(manifest.plans, machine)
        except (EngineError, BundleError):
            has_cuda = machine.gpu is not None and PROVIDER in providers
            return "cuda" if has_cuda and machine.cuda_bindings else "cpu"
        return "trt"
    return backend


def choose_plan(plans: Sequence[PlanSpec], machine: Machine) -> PlanSpec:
    """The first plan that fits a machine.

    Raises:
        EngineError: there is none, or nothing to run it with; says why the first does not fit.
        BundleError: likewise, where this version does not know its flavour.
    """
    refused: EngineError | BundleError | None = None
    for plan in plans:
        try:
            check_plan_fits(plan, machine)
            _check_bindings("trt", machine)
        except (EngineError, BundleError) as error:
            refused = refused or error
        else:
            return plan
    if refused is not None:
        raise refused
    raise EngineError(
        "backend 'trt' needs a TensorRT plan and the bundle holds none",
        "export it with --format trt, or take backend cuda or cpu",
    )


def _check_cuda(machine: Machine, providers: Sequence[str]) -> None:
    if PROVIDER not in providers:
        raise EngineError(
            f"backend 'cuda' needs ONNX Runtime's CUDA provider, here are {', '.join(providers)}",
            f"{INSTALL_CUDA}, or take backend cpu",
        )
    if machine.gpu is None:
        raise EngineError(
            "backend 'cuda' needs an NVIDIA GPU, and CUDA shows none here",
            "check nvidia-smi, or take backend cpu",
        )
    _check_bindings("cuda", machine)


def _check_bindings(backend: str, machine: Machine) -> None:
    if not machine.cuda_bindings:
        raise EngineError(
            f"backend '{backend}' needs the CUDA runtime for Python, which is not installed",
            f"{INSTALL_BINDINGS}, or take backend cpu",
        )
