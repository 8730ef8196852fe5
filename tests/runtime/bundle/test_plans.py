from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import BundleError, EngineError
from runtime.backends.cuda import output_shapes
from runtime.backends.gpu import Gpu, describe_gpu
from runtime.backends.machine import Machine, check_plan_fits
from runtime.backends.trt import choose_profile
from runtime.backends.trt_flavours import RTX, TENSORRT, Installed, check_libraries, choose_flavour
from runtime.bundle.plans import PlanSpec, ProfileSpec, RangeSpec, read_plan
from runtime.bundle.reader import read_manifest
from runtime.parity.cases import load_cases
from tests.support.paths import ROOT

GPU = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30, "13.0")
HOPPER = Gpu("NVIDIA H100", "9.0", 80 << 30, "13.0")
HERE = Installed(RTX, "tensorrt_rtx_bindings", "1.7.1.116", "1.7.1.116", "13")
CENTRE = Installed(TENSORRT, "tensorrt", "10.14.1", "10.14.1", "13")


@pytest.fixture
def spec() -> PlanSpec:
    """A plan's entry, for what needs no plan."""
    return PlanSpec(
        file="plans/rtx-sm89.plan",
        flavour="tensorrt_rtx",
        version="1.7.1.116",
        cuda="13",
        compute_capabilities=("8.6", "8.9"),
        precision="fp32",
        refittable=False,
        graph_sha256="0" * 64,
        profiles=(),
        max_new_tokens=512,
        max_logits=128,
    )


def test_no_tensorrt_names_both_installs() -> None:
    with pytest.raises(EngineError) as caught:
        choose_flavour("auto", False, None, ())
    assert "pip install tensorrt-rtx-cu13-bindings" in str(caught.value)
    assert "pip install tensorrt-cu13" in str(caught.value)


def test_flavour_is_chosen_by_what_it_is_for() -> None:
    both = (CENTRE, HERE)
    assert choose_flavour("auto", False, HOPPER, both) == CENTRE
    assert choose_flavour("auto", True, HOPPER, both) == HERE
    assert choose_flavour("auto", False, None, both) == HERE
    assert choose_flavour("auto", False, HOPPER, (HERE,)) == HERE
    with pytest.raises(EngineError, match=r"^TensorRT is not installed; .*--trt rtx"):
        choose_flavour("trt", False, HOPPER, (HERE,))


def test_bindings_and_libraries_of_two_versions_are_refused() -> None:
    with pytest.raises(EngineError, match=r"bindings are 1\.7\.1\.116, the libraries 1\.6"):
        check_libraries(dataclasses.replace(HERE, libraries="1.6"))


@pytest.mark.parametrize(
    ("change", "machine", "words"),
    [
        ({}, Machine(GPU, ()), "TensorRT for RTX 1.7.1.116, which is not installed; pip install"),
        ({}, Machine(GPU, (CENTRE,)), "TensorRT for RTX 1.7.1.116, which is not installed"),
        ({"version": "1.6.0"}, Machine(GPU, (HERE,)), "RTX 1.6.0, installed here is 1.7.1.116"),
        ({}, Machine(None, (HERE,)), "compute capability 8.6 or 8.9, and CUDA shows none here"),
        ({}, Machine(HOPPER, (HERE,)), "capability 8.6 or 8.9, NVIDIA H100 has 9.0; export again"),
        (
            {},
            Machine(dataclasses.replace(GPU, cuda="12.4"), (HERE,)),
            "needs CUDA 13, the driver of NVIDIA GeForce RTX 4090 runs CUDA up to 12.4",
        ),
    ],
)
def test_plan_that_does_not_fit_names_both_sides(
    spec: PlanSpec, change: dict[str, Any], machine: Machine, words: str
) -> None:
    with pytest.raises(EngineError) as caught:
        check_plan_fits(dataclasses.replace(spec, **change), machine)
    assert words in str(caught.value)
    assert spec.file in str(caught.value)


def test_plan_of_an_unknown_flavour_is_refused(spec: PlanSpec) -> None:
    with pytest.raises(BundleError, match="is for 'openvino', known here: tensorrt, tensorrt_rtx"):
        check_plan_fits(dataclasses.replace(spec, flavour="openvino"), Machine(GPU, (HERE,)))


def test_changed_plan_is_not_handed_out(tmp_path: Path) -> None:
    import hashlib

    file = tmp_path / "a.plan"
    file.write_bytes(b"plan")
    right = hashlib.sha256(b"plan").hexdigest()
    assert read_plan(file, right) == b"plan"
    file.write_bytes(b"plaN")
    with pytest.raises(BundleError, match="it was not loaded"):
        read_plan(file, right)
    with pytest.raises(BundleError, match="cannot read"):
        read_plan(tmp_path / "b.plan", right)


def test_profile_is_the_first_that_takes_shapes_and_depth() -> None:
    depth = (RangeSpec("depth", (1,), (2,), (4,)),)
    profiles = (
        ProfileSpec("decode", (RangeSpec("ids", (1, 1), (1, 1), (2, 1)),), depth),
        ProfileSpec("prefill", (RangeSpec("ids", (1, 1), (1, 8), (2, 16)),), depth),
    )
    four, five = np.array(4), np.array(5)
    assert choose_profile(profiles, {"ids": np.zeros((2, 1)), "depth": four}) == 0
    assert choose_profile(profiles, {"ids": np.zeros((1, 16)), "depth": four}) == 1
    with pytest.raises(EngineError, match=r"ids has the shape \[1, 17\], .* prefill takes"):
        choose_profile(profiles, {"ids": np.zeros((1, 17)), "depth": four})
    with pytest.raises(EngineError, match=r"depth has the value \[5\], .* takes \[1\] to \[4\]"):
        choose_profile(profiles, {"ids": np.zeros((1, 1)), "depth": five})
    with pytest.raises(EngineError, match="the input depth is missing"):
        choose_profile(profiles, {"ids": np.zeros((1, 1))})


def test_outputs_have_the_shapes_that_onnx_runtime_gives(tiny_bundle: Path) -> None:
    import onnxruntime

    graph = read_manifest(tiny_bundle).graphs.onnx
    case = next(
        one
        for one in load_cases(tiny_bundle / "cases.safetensors")
        if one.kind == "padded" and one.depth == 4
    )
    inputs = dict(case.inputs)
    session = onnxruntime.InferenceSession(str(tiny_bundle / "model.onnx"))
    names = [output.name for output in graph.outputs]
    expected = dict(zip(names, session.run(names, inputs), strict=True))
    assert output_shapes(graph, inputs) == {name: one.shape for name, one in expected.items()}
    inputs["row_depth"] = inputs["row_depth"][:, None]
    with pytest.raises(EngineError, match="row_depth has the shape"):
        output_shapes(graph, inputs)


def test_inputs_that_contradict_each_other_are_refused(tiny_bundle: Path) -> None:
    graph = read_manifest(tiny_bundle).graphs.onnx
    case = load_cases(tiny_bundle / "cases.safetensors")[0]
    inputs = dict(case.inputs)
    inputs["row_depth"] = np.ones(7, np.int64)
    with pytest.raises(EngineError, match="row_depth: its batch is 7, another's 1"):
        output_shapes(graph, inputs)


class FakeDriver:
    """The CUDA driver's functions, for one GPU of compute capability 12.0."""

    gpus = 1

    def cuInit(self, flags: int) -> int:  # noqa: N802 (CUDA's names)
        return 0

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = 13010
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"NVIDIA GeForce RTX 5090"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802
        memory._obj.value = 32 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 12, 76: 0}[attribute]
        return 0


def test_gpu_is_what_the_driver_says() -> None:
    assert describe_gpu(FakeDriver()) == Gpu("NVIDIA GeForce RTX 5090", "12.0", 32 << 30, "13.1")


def test_driver_without_a_gpu_is_no_gpu() -> None:
    driver = FakeDriver()
    driver.gpus = 0
    assert describe_gpu(driver) is None


def test_runtime_side_imports_no_tensorrt() -> None:
    code = (
        "import sys, runtime.backends.trt, runtime.bundle.plans, export.tensorrt.builder\n"
        "print([n for n in ('torch', 'onnx', 'tensorrt_rtx_bindings', 'cuda') if n in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    assert found.stdout.strip() == "[]", found.stderr
