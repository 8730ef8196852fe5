"""What this machine can build and run, and what would bring the rest: `ouro doctor`'s findings."""

from __future__ import annotations

import dataclasses
import re
from importlib.metadata import PackageNotFoundError, requires, version

from runtime.backends.gpu import INSTALL_BINDINGS, INSTALL_CUDA, load_driver
from runtime.backends.machine import Machine, find_machine, major_cuda
from runtime.backends.ort_library import load_onnxruntime
from runtime.backends.trt_flavours import FLAVOURS, TENSORRT, Flavour, check_libraries
from runtime.errors import EngineError

PROJECT = "ouroboros-llm"
CHECKOUT = " in the checkout of ouroboros"
GOOD, MISSING, WRONG = "ok", "missing", "wrong"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One row: a thing, its state, what was found, and what to do where it is not as it should be.

    Attributes:
        thing: its name.
        state: GOOD, MISSING or WRONG.
        found: a version or a description.
        cure: one line; empty where nothing is to be done.
    """

    thing: str
    state: str
    found: str
    cure: str = ""


@dataclasses.dataclass(frozen=True)
class Examination:
    """What was found of a machine.

    Attributes:
        findings: one a thing that the project needs.
        builds: what `ouro export --format` can write here.
        runs: the backends that run here.
    """

    findings: tuple[Finding, ...]
    builds: tuple[str, ...]
    runs: tuple[str, ...]


def examine_machine() -> Examination:
    """Looks for everything that the project can use; nothing of it but ONNX Runtime is imported."""
    machine = find_machine()
    findings = [
        *find_packages(),
        find_onnxruntime(machine),
        find_gpu(machine),
        *find_tensorrts(machine),
        find_bindings(machine),
    ]
    builds, runs = list_builds(findings), list_runs(findings, machine)
    return Examination(tuple(findings), tuple(builds), tuple(runs))


def find_packages() -> list[Finding]:
    """The packages of the project's extras `train` and `export`, against what they ask for.

    Nothing is imported: versions come from the packages' metadata.
    """
    try:
        asked = requires(PROJECT) or []
    except PackageNotFoundError:
        return [Finding(PROJECT, MISSING, "no metadata", f"pip install .{CHECKOUT}")]
    findings = []
    for name, extra in WANTED.items():
        minimum = minimum_version(asked, name)
        install = f'pip install ".[{extra}]"' if extra else "pip install ."
        try:
            found = version(name)
        except PackageNotFoundError:
            findings.append(
                Finding(name, MISSING, f"{minimum} or newer is asked for", install + CHECKOUT)
            )
            continue
        old = order(found) < order(minimum)
        state = WRONG if old else GOOD
        cure = f"it is older than {minimum}: {install} --upgrade{CHECKOUT}" if old else ""
        findings.append(Finding(name, state, found, cure))
    return findings


# Which extra brings what; the rest of an extra comes with these.
WANTED = {
    "tokenizers": "",
    "torch": "train",
    "transformers": "train",
    "onnx": "export",
    "onnx-ir": "export",
    "onnxscript": "export",
}


def minimum_version(requirements: list[str], package: str) -> str:
    """The least version of a package that a list of requirements asks for; "0" where none does.

    Args:
        requirements: as the metadata writes them, such as `torch>=2.9; extra == "train"`.
        package: its name.
    """
    for line in requirements:
        found = re.match(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)", line)
        if found and found[1].lower().replace("_", "-") == package:
            return found[2]
    return "0"


def order(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare by: (2, 13, 0) of "2.13.0+cpu"."""
    return tuple(int(part) for part in re.split(r"[^\d.]", version)[0].split(".") if part)


def find_onnxruntime(machine: Machine) -> Finding:
    """ONNX Runtime and its providers.

    Args:
        machine: from `find_machine`.
    """
    try:
        onnxruntime = load_onnxruntime()
    except ImportError as error:
        reason = " ".join(str(error).split())[:120]
        return Finding("onnxruntime", MISSING, reason, f"pip install .{CHECKOUT}")
    providers = [one.removesuffix("ExecutionProvider") for one in _providers(onnxruntime)]
    found = f"{onnxruntime.__version__}: {', '.join(providers)}"
    if machine.gpu is not None and "CUDA" not in providers:
        return Finding("onnxruntime", WRONG, found, f"there is a GPU: {INSTALL_CUDA}")
    return Finding("onnxruntime", GOOD, found)


def find_gpu(machine: Machine) -> Finding:
    """The GPU and the CUDA of its driver.

    Args:
        machine: from `find_machine`.
    """
    gpu = machine.gpu
    if gpu is not None:
        size = f"{gpu.memory_bytes / 2**30:.0f} GiB"
        found = f"{gpu.name}, compute capability {gpu.compute_capability}, {size}, CUDA {gpu.cuda}"
        return Finding("GPU", GOOD, found)
    if load_driver() is None:
        return Finding("GPU", MISSING, "no CUDA driver", "with an NVIDIA GPU: install its driver")
    return Finding("GPU", MISSING, "a CUDA driver, but no GPU", "check nvidia-smi")


def find_tensorrts(machine: Machine) -> list[Finding]:
    """Both TensorRTs, whether their parts fit each other and the machine.

    Args:
        machine: from `find_machine`.
    """
    return [find_tensorrt(machine, flavour) for flavour in FLAVOURS.values()]


def find_bindings(machine: Machine) -> Finding:
    """The CUDA runtime for Python, which the backends cuda and trt need.

    Args:
        machine: from `find_machine`.
    """
    if not machine.cuda_bindings:
        cure = f"to run on a GPU, with the backends cuda and trt: {INSTALL_BINDINGS}"
        return Finding("cuda-bindings", MISSING, "the CUDA runtime for Python", cure)
    try:
        return Finding("cuda-bindings", GOOD, version("cuda-bindings"))
    except PackageNotFoundError:
        return Finding("cuda-bindings", GOOD, "unknown version")


def find_tensorrt(machine: Machine, flavour: Flavour) -> Finding:
    """One TensorRT.

    Args:
        machine: from `find_machine`.
        flavour: which.
    """
    installed = next((one for one in machine.installed if one.flavour == flavour), None)
    if installed is None:
        use = "data-centre GPUs" if flavour == TENSORRT else "GeForce and RTX GPUs, builds without"
        return Finding(flavour.title, MISSING, f"for {use}", flavour.install)
    found = f"{installed.version or 'unknown version'}"
    if installed.cuda:
        found += f" for CUDA {installed.cuda}"
    try:
        check_libraries(installed)
    except EngineError as error:
        return Finding(flavour.title, WRONG, found, str(error))
    gpu = machine.gpu
    if gpu is not None and major_cuda(gpu.cuda) < major_cuda(installed.cuda):
        cure = f"the driver runs CUDA up to {gpu.cuda}: update the NVIDIA driver"
        return Finding(flavour.title, WRONG, found, cure)
    if gpu is None and flavour == TENSORRT:
        cure = "it builds and runs only where CUDA shows a GPU; --trt rtx builds without one"
        return Finding(flavour.title, WRONG, found, cure)
    return Finding(flavour.title, GOOD, found)


def list_builds(findings: list[Finding]) -> list[str]:
    """What `ouro export --format` can write here.

    Args:
        findings: all of them.
    """
    good = {one.thing for one in findings if one.state == GOOD}
    if not {"torch", "transformers", "onnx", "onnx-ir", "onnxscript"} <= good:
        return []
    kinds = [f"trt ({f.title})" for f in FLAVOURS.values() if f.title in good]
    return ["onnx", *kinds]


def list_runs(findings: list[Finding], machine: Machine) -> list[str]:
    """The backends that run here.

    Args:
        findings: all of them.
        machine: from `find_machine`.
    """
    states = {one.thing: one for one in findings}
    runtime = states.get("onnxruntime")
    has_gpu = machine.gpu is not None and machine.cuda_bindings
    backends = []
    if runtime is not None and runtime.state != MISSING:
        backends.append("cpu")
        if has_gpu and "CUDA" in runtime.found:
            backends.append("cuda")
    plans = any(states[f.title].state == GOOD for f in FLAVOURS.values() if f.title in states)
    if has_gpu and plans:
        backends.append("trt")
    return backends


def _providers(onnxruntime: object) -> list[str]:
    return list(onnxruntime.get_available_providers())  # type: ignore[attr-defined]
