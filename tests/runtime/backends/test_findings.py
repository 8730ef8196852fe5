"""What `ouro doctor` says of a machine, part by part."""

from __future__ import annotations

import dataclasses
import sys
from importlib.metadata import distributions

import pytest

from runtime.backends.findings import (
    GOOD,
    MISSING,
    WRONG,
    Finding,
    find_bindings,
    find_gpu,
    find_onnxruntime,
    find_packages,
    find_tensorrt,
    list_builds,
    list_runs,
    minimum_version,
    order,
)
from runtime.backends.gpu import INSTALL_CUDA, Gpu, has_cuda_bindings
from runtime.backends.machine import Machine
from runtime.backends.trt_flavours import RTX, TENSORRT, Installed

GPU = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30, "13.0")
HERE = Installed(RTX, "tensorrt_rtx_bindings", "1.7.1.116", "1.7.1.116", "13")
CENTRE = Installed(TENSORRT, "tensorrt", "10.14.1", "", "13")


@pytest.mark.needs_torch
def test_packages_are_good_in_the_project_own_environment() -> None:
    assert {one.state for one in find_packages()} == {GOOD}


def test_minimum_comes_from_the_project_requirements() -> None:
    asked = ["numpy>=2.0", 'torch>=2.9; extra == "train"', 'onnx_ir>=0.1; extra == "export"']
    assert minimum_version(asked, "torch") == "2.9"
    assert minimum_version(asked, "onnx-ir") == "0.1"
    assert minimum_version(asked, "onnx") == "0"


def test_versions_compare_by_number() -> None:
    assert order("2.13.0+cpu") == (2, 13, 0)
    assert order("2.13.0+cpu") > order("2.9")
    assert order("5.0.0rc1") >= order("5")


def test_gpu_without_cuda_provider_is_wrong() -> None:
    found = find_onnxruntime(Machine(GPU, ()))
    assert found.state == WRONG
    assert found.cure.endswith(INSTALL_CUDA)
    assert find_onnxruntime(Machine(None, ())).state == GOOD


def test_missing_cuda_bindings_have_their_cure() -> None:
    found = find_bindings(Machine(GPU, (), cuda_bindings=False))
    assert (found.thing, found.state) == ("cuda-bindings", MISSING)
    assert "backends cuda and trt: pip install cuda-bindings" in found.cure
    assert find_bindings(Machine(GPU, ())).state == GOOD


def test_cuda_bindings_are_found_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = any(one.metadata["Name"] == "cuda-bindings" for one in distributions())
    assert has_cuda_bindings() == listed
    for name in [one for one in sys.modules if one.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.path", [])
    assert not has_cuda_bindings()


def test_gpu_is_described() -> None:
    found = find_gpu(Machine(GPU, ()))
    assert found == Finding(
        "GPU", GOOD, "NVIDIA GeForce RTX 4090, compute capability 8.9, 24 GiB, CUDA 13.0"
    )


def test_missing_tensorrt_has_its_install_as_cure() -> None:
    for flavour in (TENSORRT, RTX):
        found = find_tensorrt(Machine(None, ()), flavour)
        assert (found.state, found.cure) == (MISSING, flavour.install)


@pytest.mark.parametrize(
    ("installed", "gpu", "state", "cure"),
    [
        (HERE, None, GOOD, ""),
        (HERE, GPU, GOOD, ""),
        (HERE, dataclasses.replace(GPU, cuda="12.8"), WRONG, "update the NVIDIA driver"),
        (dataclasses.replace(HERE, libraries="1.6"), GPU, WRONG, "the libraries 1.6"),
        (CENTRE, None, WRONG, "only where CUDA shows a GPU"),
        (CENTRE, GPU, GOOD, ""),
    ],
)
def test_tensorrt_and_machine_must_fit(
    installed: Installed, gpu: Gpu | None, state: str, cure: str
) -> None:
    found = find_tensorrt(Machine(gpu, (installed,)), installed.flavour)
    assert found.state == state
    assert cure in found.cure
    assert bool(found.cure) == bool(cure)


def test_what_builds_and_runs_follows_from_the_findings() -> None:
    names = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "cuda-bindings", RTX.title)
    found = [Finding(name, GOOD, "1") for name in names]
    found.append(Finding("onnxruntime", GOOD, "1.32.0: CUDA, CPU"))
    assert list_builds(found) == ["onnx", "trt (TensorRT for RTX)"]
    assert list_runs(found, Machine(GPU, (HERE,))) == ["cpu", "cuda", "trt"]
    assert list_runs(found, Machine(None, (HERE,))) == ["cpu"]
    assert list_runs(found, Machine(GPU, (HERE,), cuda_bindings=False)) == ["cpu"]
    assert list_builds(found[1:]) == []
