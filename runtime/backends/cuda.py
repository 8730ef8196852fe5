"""GPU memory for a batch, through the CUDA runtime's own Python package: no torch, no cupy.

Tensors are allocated with cudaMalloc and handed to ONNX Runtime or TensorRT by address. New keys
go into their slots by strided copies on the GPU; the cache never passes through host memory.

`tests/runtime/backends/test_cuda.py` runs all of it on a stand-in for CUDA that keeps its memory on
the host.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.gpu import INSTALL_BINDINGS
from runtime.backends.strides import Level, cut_into_boxes
from runtime.bundle.contract import DEPTH, ELEMENT_TYPES, TensorSpec, parse_size, resolve_size
from runtime.bundle.cures import EXPORT_AGAIN
from runtime.errors import EngineError

if TYPE_CHECKING:
    from runtime.backends.memory import Backend, Span
    from runtime.bundle.manifest import GraphSpec

Array = NDArray[Any]

# A GPU takes a few hundred tokens of a small model in the time that starting its kernels takes.
CALL_TOKENS = 256


def load_cuda() -> Any:
    """The CUDA runtime's Python module.

    Raises:
        EngineError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(
            "the backends cuda and trt need the CUDA runtime for Python",
            f"{INSTALL_BINDINGS}, or take backend cpu",
        ) from error
    return runtime


class _Block:
    """One allocation, freed with the last array on it."""

    def __init__(self, cuda: Any, address: int) -> None:
        self.free = weakref.finalize(self, cuda.cudaFree, address)


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceArray:
    """A tensor in GPU memory.

    Attributes:
        block: keeps the memory allocated.
        address: of its first byte.
        shape: sizes of its dimensions.
        dtype: "float32", "float16", "bfloat16" or "int64".
        stride: bytes from one part along axis 0 to the next; more than a part holds where parts
            are aligned.
    """

    block: Any
    address: int
    shape: tuple[int, ...]
    dtype: str
    stride: int

    @property
    def part_bytes(self) -> int:
        """Bytes of one part along axis 0."""
        return math.prod(self.shape[1:]) * ELEMENT_TYPES[self.dtype].item_bytes

    @property
    def nbytes(self) -> int:
        """Bytes it spans."""
        return (self.shape[0] if self.shape else 1) * self.stride

    @property
    def has_gaps(self) -> bool:
        """Whether unused bytes lie between its parts."""
        return self.stride != self.part_bytes

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        """The same memory under another shape.

        Raises:
            EngineError: it has gaps, or the sizes differ.
        """
        if self.has_gaps or math.prod(shape) != math.prod(self.shape):
            raise EngineError(
                f"{list(self.shape)} on the GPU can't become {list(shape)}",
                "give a shape of as many elements, and an array without gaps",
            )
        return _array(self.block, self.address, shape, self.dtype)

    def __iter__(self) -> Iterator[DeviceArray]:
        for index in range(self.shape[0]):
            address = self.address + index * self.stride
            yield _array(self.block, address, self.shape[1:], self.dtype)

    def __getitem__(self, parts: slice) -> DeviceArray:
        """The same memory, only these parts of axis 0, which lie together."""
        start, stop, _ = parts.indices(self.shape[0])
        shape = (max(0, stop - start), *self.shape[1:])
        address = self.address + start * self.stride
        return DeviceArray(self.block, address, shape, self.dtype, self.stride)


def _array(block: Any, address: int, shape: tuple[int, ...], dtype: str) -> DeviceArray:
    stride = math.prod(shape[1:]) * ELEMENT_TYPES[dtype].item_bytes
    return DeviceArray(block, address, tuple(shape), dtype, stride)


def _slot_bytes(array: DeviceArray) -> int:
    return array.shape[-1] * ELEMENT_TYPES[array.dtype].item_bytes


def _steps(array: DeviceArray) -> tuple[int, int, int]:
    """Bytes between parts, rows and entries of [parts, rows, ..., slots, width]."""
    pitch = array.shape[-2] * _slot_bytes(array)
    return array.stride, math.prod(array.shape[2:-2]) * pitch, pitch


def _slot_address(array: DeviceArray, row: int, slot: int) -> int:
    return array.address + row * _steps(array)[1] + slot * _slot_bytes(array)


class CudaMemory:
    """`runtime.backends.memory.Memory` on the first GPU, with a stream of its own.

    Attributes:
        stream: the CUDA stream that every copy is started on.
        host_bytes: see `Memory.host_bytes`.
    """

    def __init__(self, cuda: Any, alignment: int) -> None:
        """Makes the stream.

        Args:
            cuda: from `load_cuda`.
            alignment: bytes; the addresses of the tensors of a stack are multiples of it.

        Raises:
            EngineError: CUDA shows no GPU here.
        """
        self._cuda, self._alignment = cuda, alignment
        self.host_bytes = 0
        self._host: weakref.WeakKeyDictionary[DeviceArray, Array] = weakref.WeakKeyDictionary()
        self.stream = int(self._call("cudaStreamCreate"))
        weakref.finalize(self, cuda.cudaStreamDestroy, self.stream)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """See `Memory.zeros`."""
        size = math.prod(shape) * ELEMENT_TYPES[dtype].item_bytes
        return _array(*self._allocate(size), shape, dtype)

    def stack(self, count: int, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """See `Memory.stack`."""
        size = math.prod(shape) * ELEMENT_TYPES[dtype].item_bytes
        stride = -(-size // self._alignment) * self._alignment
        block, address = self._allocate(count * stride)
        return DeviceArray(block, address, (count, *shape), dtype, stride)

    def put(self, array: Array, dtype: str) -> DeviceArray:
        """A copy of a numpy array, in another type where that differs."""
        target = self.zeros(array.shape, dtype)
        self.write(target, _to_host_type(array, dtype))
        self.wait()  # the converted array may end with this call
        return target

    def write(self, target: DeviceArray, array: Array) -> None:
        """Starts the copy of an array of the same bytes, which lives on until `wait`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        if array.nbytes:
            source = array.ctypes.data
            self.host_bytes += array.nbytes
            self._call("cudaMemcpyAsync", target.address, source, array.nbytes, kind, self.stream)

    def copy(self, target: Any, source: Any, span: Span) -> None:
        """See `Memory.copy`; it is only started."""
        entries = min(target.shape[2], source.shape[2])
        inner = entries * math.prod(target.shape[3:-2])
        steps = tuple(zip(_steps(target), _steps(source), strict=True))
        counts = (target.shape[0], span.rows, inner)
        starts = (
            _slot_address(target, span.row, span.at),
            _slot_address(source, span.source_row, span.first),
        )
        width = span.slots * _slot_bytes(target)
        levels = [Level(count, step) for count, step in zip(counts, steps, strict=True)]
        if width * math.prod(counts):
            for (to, origin), box in cut_into_boxes(levels, starts):
                self._copy_box(to, origin, width, box)

    def clear(self, target: Any, row: int, first: int, count: int) -> None:
        """See `Memory.clear`; it is only started."""
        part, _, pitch = _steps(target)
        inner = math.prod(target.shape[2:-2])
        width = count * _slot_bytes(target)
        levels = [Level(target.shape[0], (part,)), Level(inner, (pitch,))]
        if width * inner * target.shape[0]:
            start = _slot_address(target, row, first)
            for (address,), box in cut_into_boxes(levels, (start,)):
                self._clear_box(address, width, box)

    def read(self, buffer: Any) -> Array:
        """See `Memory.read`; a bfloat16 buffer comes as float32."""
        host = self._host.get(buffer)
        if host is None:
            held = "uint16" if buffer.dtype == "bfloat16" else buffer.dtype
            host = self._host[buffer] = np.empty(buffer.shape, held)
        if host.nbytes:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            to = host.ctypes.data
            self.host_bytes += host.nbytes
            self._call("cudaMemcpyAsync", to, buffer.address, host.nbytes, kind, self.stream)
        self.wait()
        return _from_bfloat16(host) if buffer.dtype == "bfloat16" else host

    def wait(self) -> None:
        """Waits for everything that was started."""
        self._call("cudaStreamSynchronize", self.stream)

    def _copy_box(self, to: int, origin: int, width: int, box: list[Level]) -> None:
        """Starts a copy of `width` bytes that lie together, as often as the levels say."""
        cuda = self._cuda
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        rows, (pitch, other) = box[-1] if box else Level(1, (width, width))
        if len(box) < 2:
            call = (to, pitch, origin, other, width, rows, kind, self.stream)
            self._call("cudaMemcpy2DAsync", *call)
            return
        slices, (far, far_other) = box[0]
        given = cuda.cudaMemcpy3DParms()
        given.dstPtr = cuda.make_cudaPitchedPtr(to, pitch, width, far // pitch)
        given.srcPtr = cuda.make_cudaPitchedPtr(origin, other, width, far_other // other)
        given.extent = cuda.make_cudaExtent(width, rows, slices)
        given.kind = kind
        self._call("cudaMemcpy3DAsync", given, self.stream)

    def _clear_box(self, address: int, width: int, box: list[Level]) -> None:
        cuda = self._cuda
        rows, (pitch,) = box[-1] if box else Level(1, (width,))
        slices, (far,) = box[0] if len(box) == 2 else Level(1, (rows * pitch,))
        pointer = cuda.make_cudaPitchedPtr(address, pitch, width, far // pitch)
        extent = cuda.make_cudaExtent(width, rows, slices)
        self._call("cudaMemset3DAsync", pointer, 0, extent, self.stream)

    def _allocate(self, size: int) -> tuple[_Block, int]:
        size = max(size, 1)  # neither library takes the address 0 for an empty tensor
        address = int(self._call("cudaMalloc", size))
        block = _Block(self._cuda, address)
        self._call("cudaMemsetAsync", address, 0, size, self.stream)
        return block, address

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *results = getattr(self._cuda, function)(*arguments)
        if int(error) != 0:
            raise EngineError(f"CUDA: {function} failed with {error.name}", "is a GPU free?")
        return results[0] if results else None


def run_on_device(
    backend: Backend, memory: CudaMemory, graph: GraphSpec, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Runs a graph once on arrays, cast to its types.

    Args:
        backend: what runs it.
        memory: of that backend.
        graph: names the tensors.
        inputs: every input.

    Returns:
        Every output by name; bfloat16 ones as float32.

    Raises:
        EngineError: an input is missing or of a wrong shape, or the run failed.
    """
    given: dict[str, Any] = {}
    for spec in graph.inputs:
        if spec.name not in inputs:
            raise EngineError(f"the input {spec.name} is missing", "give every input of the graph")
        array = inputs[spec.name]
        if ELEMENT_TYPES[spec.dtype].floating:
            given[spec.name] = memory.put(array, spec.dtype)
        else:
            given[spec.name] = np.ascontiguousarray(array, spec.dtype).reshape(array.shape)
    shapes = output_shapes(graph, given)
    outputs = {spec.name: memory.zeros(shapes[spec.name], spec.dtype) for spec in graph.outputs}
    backend.bind(memory, given, outputs).run()
    return {name: memory.read(array) for name, array in outputs.items()}


def output_shapes(graph: GraphSpec, inputs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every output, from the named dimensions of the inputs.

    Args:
        graph: names the dimensions; `depth` stands for the value of the input of that name.
        inputs: by name, with a `shape`.

    Raises:
        EngineError: the inputs contradict each other, or leave a dimension open.
    """
    sizes = {DEPTH: int(inputs[DEPTH].reshape(-1)[0])}
    for spec in graph.inputs:
        given = inputs[spec.name].shape
        if len(given) != len(spec.shape):
            raise EngineError(
                f"{spec.name} has the shape {list(given)}, not {list(spec.shape)}",
                "give it as many dimensions as the graph has",
            )
        for name, size in zip(spec.shape, given, strict=False):
            if isinstance(name, int) or parse_size(name) != [(1, name)]:
                continue
            if sizes.setdefault(name, size) != size:
                raise EngineError(
                    f"{spec.name}: its {name} is {size}, another's {sizes[name]}",
                    "give all inputs the same",
                )
    return {
        spec.name: tuple(_size(spec, one, sizes) for one in spec.shape) for spec in graph.outputs
    }


def _size(spec: TensorSpec, size: int | str, sizes: Mapping[str, int]) -> int:
    try:
        return resolve_size(size, sizes)
    except KeyError as error:
        raise EngineError(
            f"the output {spec.name} has the dimension {size}, which no input gives",
            EXPORT_AGAIN,
        ) from error


def _to_host_type(array: Array, dtype: str) -> Array:
    """The bytes that a device array of type `dtype` holds; bfloat16 as its 16 bits in uint16."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(array, np.dtype(dtype))
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    even = (bits >> 16) & 1  # a number half-way between two goes to the even one
    rounded: Array = ((bits + 0x7FFF + even) >> 16).astype(np.uint16)
    return rounded


def _from_bfloat16(bits: Array) -> Array:
    widened: Array = (bits.astype(np.uint32) << 16).view(np.float32)
    return widened
