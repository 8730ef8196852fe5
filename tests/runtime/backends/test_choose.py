"""Which backend is taken where; machines are described."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import Engine, EngineError
from runtime.backends.choose import choose_backend, choose_plan, require_backend
from runtime.backends.gpu import Gpu, describe_gpu
from runtime.backends.machine import Machine
from runtime.backends.ort import open_session
from runtime.backends.trt_flavours import TENSORRT, Installed
from runtime.bundle.manifest import Manifest
from runtime.bundle.plans import PlanSpec
from runtime.bundle.reader import open_bundle
from runtime.parity.check import check_bundle
from tests.support.paths import ROOT

GPU = Gpu("NVIDIA L4", "8.9", 24 << 30, "13.0")
INSTALLED = Installed(TENSORRT, "tensorrt", "10.14.1", "10.14.1", "13")
BARE, WITH_GPU, WITH_TRT = Machine(None, ()), Machine(GPU, ()), Machine(GPU, (INSTALLED,))
UNBOUND = Machine(GPU, (INSTALLED,), cuda_bindings=False)
CPU = ["CPUExecutionProvider"]
CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def plan(flavour: str = "tensorrt", version: str = "10.14.1") -> PlanSpec:
    return PlanSpec("e.plan", flavour, version, "13", ("8.9",), "fp32", False, "", (), 512, 128)


@pytest.fixture
def manifest(engine: Engine) -> Manifest:
    return engine.manifest


def test_auto_takes_trt_then_cuda_then_cpu(manifest: Manifest) -> None:
    planned = dataclasses.replace(manifest, plans=(plan(version="9"), plan()))
    assert choose_backend(planned, "auto", WITH_TRT, CUDA) == "trt"
    assert choose_plan(planned.plans, WITH_TRT).version == "10.14.1"
    assert choose_backend(manifest, "auto", WITH_TRT, CUDA) == "cuda"
    assert choose_backend(planned, "auto", WITH_GPU, CUDA) == "cuda"
    assert choose_backend(planned, "auto", WITH_GPU, CPU) == "cpu"
    assert choose_backend(planned, "auto", BARE, CUDA) == "cpu"
    assert choose_backend(manifest, "auto", BARE, CPU) == "cpu"
    newer = dataclasses.replace(manifest, plans=(plan(flavour="tensorrt_next"),))
    assert choose_backend(newer, "auto", WITH_TRT, CUDA) == "cuda"


@pytest.mark.parametrize("call", [Engine.open, check_bundle])
@pytest.mark.parametrize(
    ("given", "words"), [({"backend": "gpu"}, "backend='gpu'"), ({"threads": 0}, "threads=0")]
)
def test_what_no_bundle_is_opened_with_is_told_before_one_is_read(
    call: Callable[..., object], given: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=words):
        call(tmp_path / "nowhere", **given)


def test_what_can_t_run_here_is_told_before_a_bundle_is_read(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.backends.choose.find_machine", lambda: BARE)
    for backend in ("gpu", "cuda", "trt"):
        with pytest.raises(EngineError, match=f"backend.*{backend}"):
            require_backend(manifest, backend, None)
    half = dataclasses.replace(manifest, precision="bf16")
    for backend in ("cpu", "auto"):
        require_backend(manifest, backend, 1)
        with pytest.raises(EngineError, match="no bfloat16 arithmetic"):
            require_backend(half, backend, 1)


def test_named_backend_is_never_replaced(manifest: Manifest) -> None:
    assert choose_backend(manifest, "cpu", WITH_TRT, CUDA) == "cpu"
    assert choose_backend(manifest, "cuda", WITH_TRT, CUDA) == "cuda"
    for machine, providers, words in (
        (WITH_GPU, CPU, r"here are CPUExecutionProvider; pip uninstall -y onnxruntime"),
        (UNBOUND, CUDA, r"CUDA runtime for Python, which is not installed; pip install cuda-bind"),
        (BARE, CUDA, r"needs an NVIDIA GPU, and CUDA shows none here; check nvidia-smi"),
    ):
        with pytest.raises(EngineError, match=words) as caught:
            choose_backend(manifest, "cuda", machine, providers)
        assert "\n" not in str(caught.value)


def test_without_cuda_bindings_auto_takes_the_cpu(manifest: Manifest) -> None:
    planned = dataclasses.replace(manifest, plans=(plan(),))
    assert choose_backend(planned, "auto", UNBOUND, CUDA) == "cpu"
    with pytest.raises(EngineError, match=r"backend 'trt' needs the CUDA runtime for Python"):
        choose_backend(planned, "trt", UNBOUND, CUDA)


def test_trt_says_why_no_plan_fits(manifest: Manifest) -> None:
    with pytest.raises(EngineError, match="the bundle holds none; export it with --format trt"):
        choose_backend(manifest, "trt", WITH_TRT, CUDA)
    old = dataclasses.replace(manifest, plans=(plan(version="9.3"), plan(flavour="x")))
    with pytest.raises(EngineError, match=r"built with TensorRT 9\.3, installed here is 10\.14"):
        choose_backend(old, "trt", WITH_TRT, CUDA)


def test_engine_names_what_it_runs_on(engine: Engine) -> None:
    assert engine.backend == "cpu"


@pytest.mark.skipif(describe_gpu() is not None, reason="says what happens without a GPU")
@pytest.mark.parametrize("backend", ["cuda", "trt"])
def test_gpu_backends_without_one_are_one_line(tiny_bundle: Path, backend: str) -> None:
    with pytest.raises(EngineError, match=f"backend '{backend}' needs") as caught:
        Engine.open(tiny_bundle, backend=backend)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(describe_gpu() is not None, reason="says what happens without a GPU")
def test_provider_that_does_not_load_is_not_replaced(tiny_bundle: Path) -> None:
    # ONNX Runtime goes on with the CPU where a provider is missing, with no more than a warning.
    code = (
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from runtime.bundle.reader import open_bundle\n"
        "from runtime.backends.ort import open_session\n"
        f"open_session(open_bundle({str(tiny_bundle)!r}), 'CUDAExecutionProvider', {{}}, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "EngineError: ONNX Runtime could not load its CUDAExecutionProvider" in done.stderr


def test_cpu_session_keeps_its_provider(tiny_bundle: Path) -> None:
    session = open_session(open_bundle(tiny_bundle), "CPUExecutionProvider", {}, 1)
    assert session.get_providers() == ["CPUExecutionProvider"]
