"""Stand-ins for CUDA and TensorRT whose "GPU" memory is the host's, to run GPU code on the CPU."""

# ruff: noqa: N801, N802, N803, N815 (the names are NVIDIA's)
from __future__ import annotations

import ctypes
import enum
import hashlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.gpu import Gpu
from runtime.backends.machine import Machine
from runtime.backends.trt_flavours import TENSORRT, Installed
from tests.support.paths import ROOT


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorNoDevice = 100
    cudaErrorInvalidValue = 1


class cudaMemcpy3DParms:
    """As CUDA's: all zero until it is set."""

    def __init__(self) -> None:
        self.dstPtr, self.srcPtr = cudaPitchedPtr(), cudaPitchedPtr()
        self.extent, self.kind = cudaExtent(), 0


class cudaPitchedPtr:
    def __init__(self) -> None:
        self.ptr, self.pitch, self.xsize, self.ysize = 0, 0, 0, 0


class cudaExtent:
    def __init__(self) -> None:
        self.width, self.height, self.depth = 0, 0, 0


class FakeCuda:
    """The functions of cuda.bindings.runtime that the runtime uses, checked as CUDA does.

    Attributes:
        blocks: memory by address; new memory is not zero.
        calls: names of the functions called.
        host_bytes: bytes copied to the "GPU" and from it.
    """

    cudaMemcpyKind = types.SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaMemcpy3DParms = cudaMemcpy3DParms

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.calls: list[str] = []
        self.host_bytes = 0
        self.broken = False

    def holds(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + len(block) - 256
            for start, block in self.blocks.items()
        )

    def cudaStreamCreate(self) -> tuple[Status, int]:
        return (Status.cudaErrorNoDevice if self.broken else Status.cudaSuccess), 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        self.calls.append("cudaStreamSynchronize")
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        self.calls.append("cudaMalloc")
        block = (ctypes.c_ubyte * (size + 256))()
        ctypes.memset(block, 0xFF, size + 256)  # NaN in every float type
        start = -(-ctypes.addressof(block) // 256) * 256
        self.blocks[start] = memoryview(block)[: size + 256]
        return Status.cudaSuccess, start

    def cudaFree(self, address: int) -> tuple[Status]:
        del self.blocks[address]
        return (Status.cudaSuccess,)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[Status]:
        assert self.holds(address, size)
        ctypes.memset(address, value, size)
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: int, stream: int
    ) -> tuple[Status]:
        assert size > 0
        assert kind in (1, 2)
        assert self.holds(to if kind == 1 else source, size)
        self.host_bytes += size
        ctypes.memmove(to, source, size)
        return (Status.cudaSuccess,)

    def cudaMemcpy2DAsync(
        self,
        to: int,
        to_pitch: int,
        source: int,
        pitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
    ) -> tuple[Status]:
        self.calls.append("cudaMemcpy2DAsync")
        if kind != 3 or width > min(pitch, to_pitch):
            return (Status.cudaErrorInvalidValue,)
        for row in range(height):
            one, other = to + row * to_pitch, source + row * pitch
            assert self.holds(one, width)
            assert self.holds(other, width)
            ctypes.memmove(one, other, width)
        return (Status.cudaSuccess,)

    def make_cudaPitchedPtr(self, d: int, p: int, xsz: int, ysz: int) -> cudaPitchedPtr:
        made = cudaPitchedPtr()
        made.ptr, made.pitch, made.xsize, made.ysize = d, p, xsz, ysz
        return made

    def make_cudaExtent(self, w: int, h: int, d: int) -> cudaExtent:
        made = cudaExtent()
        made.width, made.height, made.depth = w, h, d
        return made

    def cudaMemcpy3DAsync(self, p: cudaMemcpy3DParms, stream: int) -> tuple[Status]:
        self.calls.append("cudaMemcpy3DAsync")
        if (
            p.kind != 3
            or not self._takes(p.dstPtr, p.extent)
            or not self._takes(p.srcPtr, p.extent)
        ):
            return (Status.cudaErrorInvalidValue,)
        rows = zip(_rows_of(p.dstPtr, p.extent), _rows_of(p.srcPtr, p.extent), strict=True)
        for one, other in rows:
            assert self.holds(one, p.extent.width)
            assert self.holds(other, p.extent.width)
            ctypes.memmove(one, other, p.extent.width)
        return (Status.cudaSuccess,)

    def cudaMemset3DAsync(
        self, pitchedDevPtr: cudaPitchedPtr, value: int, extent: cudaExtent, stream: int
    ) -> tuple[Status]:
        self.calls.append("cudaMemset3DAsync")
        if not self._takes(pitchedDevPtr, extent):
            return (Status.cudaErrorInvalidValue,)
        for one in _rows_of(pitchedDevPtr, extent):
            assert self.holds(one, extent.width)
            ctypes.memset(one, value, extent.width)
        return (Status.cudaSuccess,)

    def _takes(self, pointer: cudaPitchedPtr, extent: cudaExtent) -> bool:
        """Whether a box lies in its pitch and slices, as the driver wants (cuMemcpy3D)."""
        return extent.width <= pointer.pitch and extent.height <= pointer.ysize


def _rows_of(pointer: cudaPitchedPtr, extent: cudaExtent) -> list[int]:
    """The addresses of a box's rows."""
    return [
        pointer.ptr + (part * pointer.ysize + row) * pointer.pitch
        for part in range(extent.depth)
        for row in range(extent.height)
    ]


class FakeTensorRT:
    """A tensorrt module whose plans are ONNX graphs or their names; ONNX Runtime runs them."""

    class ILogger:
        Severity = types.SimpleNamespace(ERROR=1)

    def __init__(self) -> None:
        self.contexts: list[FakeContext] = []

    def Runtime(self, logger: Any) -> Any:
        return types.SimpleNamespace(deserialize_cuda_engine=self._load)

    def _load(self, plan: bytes) -> Any:
        if not plan:
            return None

        def create() -> FakeContext:
            self.contexts.append(FakeContext(plan.decode() if plan.startswith(b"/") else plan))
            return self.contexts[-1]

        return types.SimpleNamespace(create_execution_context=create)


class FakeContext:
    """An IExecutionContext. Refuses addresses that are not aligned, as TensorRT does."""

    def __init__(self, graph: str | bytes) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(graph)
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.sets, self.runs = 0, 0

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return name in self._inputs and len(shape) == len(self._inputs[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        self.sets += 1
        return name == "depth" or address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        binding = self._session.io_binding()
        for name, one in self._inputs.items():
            kind = np.int64 if one.type == "tensor(int64)" else np.float32
            fixed = all(isinstance(size, int) for size in one.shape)
            shape = tuple(one.shape) if fixed else self.shapes[name]
            binding.bind_input(name, "cpu", 0, kind, shape, self.addresses[name])
        for one in self._session.get_outputs():
            binding.bind_output(one.name, "cpu")
        self._session.run_with_iobinding(binding)
        for one, value in zip(self._session.get_outputs(), binding.get_outputs(), strict=True):
            array = value.numpy()
            ctypes.memmove(self.addresses[one.name], array.ctypes.data, array.nbytes)
        return True


class FakeBuilder:
    """Stands for export.tensorrt.builder's child: the plan that it writes is only named so.

    Attributes:
        graph: the last one it was given, weights and all.
        shapes: of its inputs, -1 what varies.
    """

    PLAN = b"a plan"

    def __call__(self, request: dict[str, Any], title: str, folder: Path) -> dict[str, Any]:
        import onnx

        self.graph = onnx.load(request["onnx"])
        self.shapes = {
            value.name: [
                -1 if size.dim_param else size.dim_value
                for size in value.type.tensor_type.shape.dim
            ]
            for value in self.graph.graph.input
        }
        (folder / request["plan"]).write_bytes(self.PLAN)
        return {
            "version": "10.14.1",
            "bytes": len(self.PLAN),
            "sha256": hashlib.sha256(self.PLAN).hexdigest(),
            "layers": 1,
            "refittable": 0,
            "inputs": self.shapes,
        }


def stand_in_for_tensorrt(patch: pytest.MonkeyPatch) -> None:
    """Lets plans be built with `fake_tensorrt`, on a machine with a Hopper GPU."""
    installed = Installed(TENSORRT, "tests.support.fake_tensorrt", "10.14.1", "10.14.1", "13")
    gpu = Gpu("NVIDIA H100", "9.0", 80 << 30, "13.0")
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setattr("export.tensorrt.target.find_flavours", lambda: (installed,))
    patch.setattr("export.tensorrt.target.describe_gpu", lambda: gpu)
    patch.setattr("export.tensorrt.refit.find_machine", lambda: Machine(gpu, (installed,)))


def stand_in_for_builder(patch: pytest.MonkeyPatch, *installed: Installed) -> FakeBuilder:
    """Lets export.tensorrt.builder find what is named here, on a machine with a Hopper GPU."""
    builder, gpu = FakeBuilder(), Gpu("NVIDIA H100", "9.0", 80 << 30, "13.0")
    patch.setattr("export.tensorrt.plan_files.build_in_child", builder)
    patch.setattr("export.tensorrt.target.find_flavours", lambda: installed)
    patch.setattr("export.tensorrt.check.find_capabilities", lambda one: [])
    for module in ("export.tensorrt.target", "export.triton.config"):
        patch.setattr(f"{module}.describe_gpu", lambda: gpu)
    return builder


class CudaLikeSession:
    """A session on the CPU whose bindings copy host tensors when they are bound, as CUDA's do.

    Source: ONNX Runtime, IOBinding::BindInput, which calls utils::CopyOneInputAcrossDevices.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def io_binding(self) -> CopyingBinding:
        return CopyingBinding(self._session.io_binding())

    def run_with_iobinding(self, binding: CopyingBinding) -> None:
        self._session.run_with_iobinding(binding.real)


class CopyingBinding:
    def __init__(self, real: Any) -> None:
        self.real = real
        self.bind_input, self.bind_output = real.bind_input, real.bind_output
        self._copies: dict[str, Any] = {}

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        from onnxruntime import OrtValue

        self._copies[name] = OrtValue.ortvalue_from_numpy(value.numpy().copy())
        self.real.bind_ortvalue_input(name, self._copies[name])
