"""What is asked of TensorRT is refused before the model is traced, calibrated and recorded."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from export import TrtOptions, export_bundle
from export.errors import ExportError
from export.tensorrt.check import find_capabilities
from runtime.backends.gpu import Gpu
from runtime.backends.trt_flavours import RTX, TENSORRT, Installed

GEFORCE = Installed(RTX, "tensorrt_rtx_bindings", "1.7.1.116", "1.7.1.116", "13")
CENTRE = Installed(TENSORRT, "tensorrt", "10.14.1", "10.14.1", "13")
HOPPER = Gpu("NVIDIA H100", "9.0", 80 << 30, "13.0")
KNOWN = ["7.5", "8.6", "8.9", "12.0"]

builds = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="TensorRT for RTX has wheels for Linux on x86-64 only",
)


def stand_in(
    patch: pytest.MonkeyPatch, installed: tuple[Installed, ...], gpu: Gpu | None, known: list[str]
) -> None:
    """A machine with these TensorRTs and this GPU, on which nothing may be traced."""

    def trace(*_: Any) -> None:
        raise AssertionError("traced what could not be built")

    patch.setattr("export.bundle.compile_graph", trace)
    patch.setattr("export.tensorrt.target.find_flavours", lambda: installed)
    patch.setattr("export.tensorrt.target.describe_gpu", lambda: gpu)
    patch.setattr("export.tensorrt.check.find_capabilities", lambda one: known)


@pytest.mark.parametrize(
    ("installed", "gpu", "options", "words"),
    [
        ((), None, TrtOptions(), "no TensorRT is installed; pip install"),
        ((GEFORCE,), None, TrtOptions("trt"), "TensorRT is not installed"),
        ((CENTRE,), None, TrtOptions(), "builds on the GPU that will run the plan, and CUDA shows"),
        (
            (GEFORCE,),
            None,
            TrtOptions(compute_capabilities=("8.9", "9.0")),
            "compute_capabilities=9.0 is not one of TensorRT for RTX; .* Hopper GPU needs `tensor",
        ),
        # Without the option TensorRT for RTX builds for the GPU that is here.
        ((GEFORCE,), HOPPER, TrtOptions(), "compute_capabilities=9.0 is not one of TensorRT for"),
        ((GEFORCE,), None, TrtOptions(refit=True), "refit: .* on a GPU, and CUDA shows none"),
        ((GEFORCE,), None, TrtOptions(max_seq=513), "max_seq=513 is not allowed"),
    ],
)
def test_plan_that_cannot_be_built_is_refused_before_the_trace(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: tuple[Installed, ...],
    gpu: Gpu | None,
    options: TrtOptions,
    words: str,
) -> None:
    stand_in(monkeypatch, installed, gpu, KNOWN)
    with pytest.raises(ExportError, match=words) as caught:
        export_bundle(tiny_checkpoint, tmp_path / "out", max_depth=2, format="trt", trt=options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("installed", "gpu", "known"), [(GEFORCE, None, KNOWN), (CENTRE, HOPPER, [])]
)
def test_plan_that_can_be_built_goes_on(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: Installed,
    gpu: Gpu | None,
    known: list[str],
) -> None:
    stand_in(monkeypatch, (installed,), gpu, known)
    with pytest.raises(AssertionError, match="traced"):
        export_bundle(tiny_checkpoint, tmp_path / "out", max_depth=2, format="trt")


@builds
def test_capabilities_are_those_of_the_library() -> None:
    # Source: trt.ComputeCapability of TensorRT-RTX 1.7.1.
    assert find_capabilities(GEFORCE) == ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "raise OSError('libnvinfer.so.10: cannot open shared object file')",
            "^TensorRT can't be loaded: OSError: libnvinfer.so.10: cannot open .*; install it",
        ),
        ("import os\nos.abort()", "^the builder of TensorRT crashed with SIGABRT; "),
    ],
)
def test_tensorrt_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    (tmp_path / "broken_tensorrt.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ExportError, match=words) as caught:
        find_capabilities(Installed(TENSORRT, "broken_tensorrt", "10", "10", "13"))
    assert "\n" not in str(caught.value)


def test_what_tensorrt_prints_is_not_taken_for_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import enum\nprint('[I] hello')\nComputeCapability = enum.Enum('C', ['SM86', 'SM120'])"
    (tmp_path / "chatty_tensorrt.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = find_capabilities(Installed(RTX, "chatty_tensorrt", "1", "1", "13"))
    assert found == ["8.6", "12.0"]
