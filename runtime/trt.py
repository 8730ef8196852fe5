"""Runs a TensorRT plan on this machine's GPU, inputs and outputs as numpy arrays.

The plan's hash, version and GPU are compared before TensorRT sees it. `depth` is a shape tensor:
TensorRT reads its value on the host, everything else lies in device memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engines import EngineSpec, Machine, ProfileSpec, check_engine_fits, read_plan
from runtime.errors import EngineError
from runtime.manifest import GraphSpec, TensorSpec
from runtime.trt_flavours import load_module

Array = NDArray[Any]


class TrtSession:
    """A loaded plan. Used from one thread; `close` gives the GPU's memory back.

    Attributes:
        spec: the plan's entry in the manifest.
        graph: the tensors of the graph it was built from.
    """

    def __init__(self, spec: EngineSpec, graph: GraphSpec, plan: bytes, trt: Any) -> None:
        self.spec = spec
        self.graph = graph
        self._memory = DeviceMemory()
        self._logger = _make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            self._memory.close()
            raise EngineError(f"{spec.file}: TensorRT cannot load it: {self._logger.last}")
        self._contexts: dict[int, Any] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the plan on arrays and returns every output by name; see `run_once`."""
        number = choose_profile(self.spec.profiles, inputs)
        context = self._context(number)
        held = {spec.name: _as_declared(inputs, spec) for spec in self.graph.inputs}
        by_value = {one.name for one in self.spec.profiles[number].values}
        for name, array in held.items():
            if name in by_value:
                context.set_tensor_address(name, array.ctypes.data)
            else:
                context.set_input_shape(name, array.shape)
                context.set_tensor_address(name, self._memory.put(name, array))
        outputs = make_outputs(self.graph, held)
        for name, array in outputs.items():
            context.set_tensor_address(name, self._memory.reserve(name, array.nbytes))
        if not context.execute_async_v3(self._memory.stream):
            raise EngineError(f"{self.spec.file}: TensorRT failed: {self._logger.last}")
        for name, array in outputs.items():
            self._memory.get(name, array)
        self._memory.wait()
        return outputs

    def close(self) -> None:
        """Frees the plan and the device memory; the session can't be used afterwards."""
        self._contexts.clear()
        self._engine = None
        self._memory.close()

    def __enter__(self) -> TrtSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _context(self, number: int) -> Any:
        if number not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None or not context.set_optimization_profile_async(
                number, self._memory.stream
            ):
                raise EngineError(
                    f"{self.spec.file}: TensorRT has no memory for the profile "
                    f"{self.spec.profiles[number].name}: {self._logger.last}"
                )
            self._contexts[number] = context
        return self._contexts[number]


class DeviceMemory:
    """A buffer on the GPU for each tensor, kept and only ever made larger, and a stream."""

    def __init__(self) -> None:
        self._cuda = load_cuda()
        self._buffers: dict[str, tuple[int, int]] = {}
        self.stream = int(self._call("cudaStreamCreate"))

    def put(self, name: str, array: Array) -> int:
        """Copies an array to the GPU; returns its address there."""
        address = self.reserve(name, array.nbytes)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        if array.nbytes:
            self._call(
                "cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream
            )
        return address

    def get(self, name: str, array: Array) -> None:
        """Starts the copy of a buffer into an array; complete after `wait`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        if array.nbytes:
            self._call(
                "cudaMemcpyAsync",
                array.ctypes.data,
                self._buffers[name][0],
                array.nbytes,
                kind,
                self.stream,
            )

    def reserve(self, name: str, size: int) -> int:
        """The address of a buffer of at least `size` bytes; never null, as TensorRT wants it."""
        address, held = self._buffers.get(name, (0, 0))
        if size > held or not address:
            if address:
                del self._buffers[name]
                self._call("cudaFree", address)
            address = int(self._call("cudaMalloc", max(size, 1)))
            self._buffers[name] = (address, size)
        return address

    def wait(self) -> None:
        """Waits for everything that was started."""
        self._call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Frees everything."""
        for address, _ in self._buffers.values():
            self._cuda.cudaFree(address)
        self._buffers.clear()
        if self.stream:
            self._cuda.cudaStreamDestroy(self.stream)
            self.stream = 0

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *results = getattr(self._cuda, function)(*arguments)
        if int(error) != 0:
            raise EngineError(f"CUDA: {function} failed with {error.name}; is a GPU free?")
        return results[0] if results else None


def load_cuda() -> Any:
    """The CUDA runtime's Python module.

    Raises:
        EngineError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(
            "TensorRT plans need the CUDA runtime for Python: pip install cuda-bindings"
        ) from error
    return runtime


def open_plan(
    file: Path, spec: EngineSpec, graph: GraphSpec, sha256: str, machine: Machine
) -> TrtSession:
    """Loads a plan onto the GPU.

    Args:
        file: the plan.
        spec: its entry in the manifest.
        graph: the bundle's graph, which names the tensors.
        sha256: of the plan, from the manifest.
        machine: from `describe_machine`.

    Raises:
        BundleError: the plan is not the one that the manifest lists; it was not loaded.
        EngineError: it does not fit this machine, or TensorRT refuses it.
    """
    installed = check_engine_fits(spec, machine)
    plan = read_plan(file, sha256)
    load_cuda()
    return TrtSession(spec, graph, plan, load_module(installed))


def run_once(session: TrtSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Runs a plan on arrays and returns every output by name, like `runtime.ort.run_once`.

    Raises:
        EngineError: no profile takes these inputs, or TensorRT failed.
    """
    return session.run(inputs)


def choose_profile(profiles: Sequence[ProfileSpec], inputs: Mapping[str, Array]) -> int:
    """The number of the first profile which takes these shapes and values.

    Raises:
        EngineError: none does; names what is outside the widest one.
    """
    problem = "the plan has no profile"
    for number, profile in enumerate(profiles):
        found = _outside(profile, inputs)
        if found is None:
            return number
        problem = found
    raise EngineError(
        f"{problem}; export again with a larger --max-batch, --max-seq or --max-depth"
    )


def make_outputs(graph: GraphSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays for every output, their shapes from the named dimensions of the inputs.

    Args:
        graph: names the dimensions; `depth` stands for the value of the input of that name.
        inputs: by name.

    Raises:
        EngineError: the inputs contradict each other, or leave a dimension open.
    """
    sizes = {"depth": int(inputs["depth"].reshape(-1)[0])}
    for spec in graph.inputs:
        given = inputs[spec.name].shape
        if len(given) != len(spec.shape) and spec.shape:
            raise EngineError(f"{spec.name} has the shape {list(given)}, not {list(spec.shape)}")
        for name, size in zip(spec.shape, given, strict=False):
            if isinstance(name, int) or "+" in name:
                continue
            if sizes.setdefault(name, size) != size:
                raise EngineError(f"{spec.name}: its {name} is {size}, another's {sizes[name]}")
    return {
        spec.name: np.zeros([_size(spec, one, sizes) for one in spec.shape], _numpy_type(spec))
        for spec in graph.outputs
    }


def _size(spec: TensorSpec, size: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size not in sizes:
        raise EngineError(f"the output {spec.name} has the dimension {size}, which no input gives")
    return sizes[size]


def _outside(profile: ProfileSpec, inputs: Mapping[str, Array]) -> str | None:
    """What of the inputs a profile does not take; None where it takes all."""
    for kind, ranges in (("shape", profile.shapes), ("value", profile.values)):
        for one in ranges:
            if one.name not in inputs:
                raise EngineError(f"the input {one.name} is missing")
            array = inputs[one.name]
            given = array.shape if kind == "shape" else tuple(array.reshape(-1).tolist())
            fits = len(given) == len(one.min) and all(
                low <= value <= high
                for low, value, high in zip(one.min, given, one.max, strict=True)
            )
            if not fits:
                return (
                    f"{one.name} has the {kind} {list(given)}, the plan's profile {profile.name} "
                    f"takes {list(one.min)} to {list(one.max)}"
                )
    return None


def _as_declared(inputs: Mapping[str, Array], spec: TensorSpec) -> Array:
    if spec.name not in inputs:
        raise EngineError(f"the input {spec.name} is missing")
    array, dtype = inputs[spec.name], _numpy_type(spec)
    if array.dtype != dtype:
        raise EngineError(f"the input {spec.name} is {array.dtype}, the plan takes {spec.dtype}")
    if not spec.shape:  # recorded cases hold a scalar as [1]
        return array.reshape(())
    return np.ascontiguousarray(array)


def _numpy_type(spec: TensorSpec) -> np.dtype[Any]:
    # numpy has no bfloat16: such a cache passes through as its 16 bits.
    return np.dtype("uint16" if spec.dtype == "bfloat16" else spec.dtype)


def _make_logger(trt: Any) -> Any:
    error = trt.ILogger.Severity.ERROR

    class Logger(trt.ILogger):
        """Keeps TensorRT's last error for a message of ours."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "it gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity <= error:
                self.last = " ".join(message.split())[:300]

    return Logger()
