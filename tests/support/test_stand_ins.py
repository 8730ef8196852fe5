"""The stand-ins for CUDA and TensorRT offer what the real packages offer, called as they are."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from tests.support import fake_cuda, fake_tensorrt

CLASSES = [
    (fake_tensorrt.BuilderConfig, "IBuilderConfig"),
    (fake_tensorrt.Network, "INetworkDefinition"),
    (fake_tensorrt.OnnxParser, "OnnxParser"),
    (fake_tensorrt.Builder, "Builder"),
    (fake_tensorrt.TimingCache, "ITimingCache"),
    (fake_tensorrt.Engine, "ICudaEngine"),
    (fake_tensorrt.Runtime, "Runtime"),
    (fake_tensorrt.Refitter, "Refitter"),
    (fake_tensorrt.OnnxParserRefitter, "OnnxParserRefitter"),
    (fake_cuda.FakeContext, "IExecutionContext"),
]


def methods_of(kind: type) -> dict[str, Any]:
    return {name: one for name, one in vars(kind).items() if name[0] != "_" and callable(one)}


@pytest.mark.parametrize(("kind", "name"), CLASSES, ids=[name for _, name in CLASSES])
def test_tensorrt_has_the_methods_of_its_stand_in(kind: type, name: str) -> None:
    real = getattr(pytest.importorskip("tensorrt_rtx_bindings"), name)
    for method, fake in methods_of(kind).items():
        # pybind11 writes the signatures there, self included.
        signatures = re.findall(rf"\b{method}\((self: .*)\) ->", getattr(real, method).__doc__)
        counts = {len(re.findall(r"\w+: ", one)) for one in signatures}
        assert len(inspect.signature(fake).parameters) in counts, (method, signatures)


def test_tensorrt_has_the_types_of_its_stand_in() -> None:
    real = pytest.importorskip("tensorrt_rtx_bindings")
    for name in ("ILogger", "IStreamWriter", "IProgressMonitor", "Logger"):
        assert isinstance(getattr(real, name), type)
    for kind in (fake_tensorrt.NetworkDefinitionCreationFlag, fake_tensorrt.BuilderFlag):
        for member in kind:
            assert hasattr(getattr(real, kind.__name__), member.name)
    for name in ("float32", "float16", "bfloat16"):
        assert hasattr(real, name)


def test_cuda_has_the_functions_of_its_stand_in() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    methods = methods_of(fake_cuda.FakeCuda).items()
    functions = {n: f for n, f in methods if "cuda" in n and not isinstance(f, type)}
    assert {"cudaMemcpy2DAsync", "make_cudaExtent"} <= functions.keys()
    for name, fake in functions.items():
        given = inspect.signature(fake).parameters.keys() - {"self"}
        assert len(inspect.signature(getattr(real, name)).parameters) == len(given), name
    for kind, value in vars(fake_cuda.FakeCuda.cudaMemcpyKind).items():
        assert int(getattr(real.cudaMemcpyKind, kind)) == value
    for status in fake_cuda.Status:
        assert int(getattr(real.cudaError_t, status.name)) == status


def test_cuda_has_the_structures_of_its_stand_in() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    cuda = fake_cuda.FakeCuda()
    for fake in (fake_cuda.cudaMemcpy3DParms, fake_cuda.cudaPitchedPtr, fake_cuda.cudaExtent):
        assert vars(fake()).keys() <= set(dir(getattr(real, fake.__name__)()))
    pointer = (0x7F00_0000_1000, 256, 128, 7)
    given = real.cudaMemcpy3DParms()
    given.dstPtr, mine = real.make_cudaPitchedPtr(*pointer), cuda.make_cudaPitchedPtr(*pointer)
    for name, value in vars(mine).items():
        assert int(getattr(given.dstPtr, name)) == value
    given.extent, size = real.make_cudaExtent(128, 3, 5), cuda.make_cudaExtent(128, 3, 5)
    for name, value in vars(size).items():
        assert getattr(given.extent, name) == value
    given.kind = real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    assert int(given.kind) == cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
