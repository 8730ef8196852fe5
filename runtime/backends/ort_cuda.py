"""ONNX Runtime on the GPU, its cache in GPU memory.

Written without a GPU at hand: on a stand-in for CUDA all of it is tested on the CPU
(`tests/runtime/backends/test_cuda.py`), on a real one by `make gpu-test`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from runtime.backends.cuda import CALL_TOKENS, CudaMemory, DeviceArray, load_cuda, run_on_device
from runtime.backends.ort import open_session, run_error
from runtime.backends.ort_library import load_onnxruntime
from runtime.bundle.contract import ELEMENT_TYPES

if TYPE_CHECKING:
    from runtime.bundle.manifest import Manifest
    from runtime.bundle.reader import Bundle

PROVIDER = "CUDAExecutionProvider"
# The default, TF32, rounds float32 factors to 10 bits: a float32 bundle would fail its check.
PROVIDER_OPTIONS = {"device_id": "0", "use_tf32": "0"}
ALIGNMENT = 16  # bytes, what vector loads need; a slot holds a multiple of it

Array = NDArray[Any]


class CudaBackend:
    """`runtime.backends.memory.Backend` on the first GPU, through ONNX Runtime's CUDA provider."""

    name = "cuda"
    max_batch: int | None = None
    max_new_tokens: int | None = None
    max_logits: int | None = None
    call_tokens = CALL_TOKENS

    def __init__(self, session: Any, manifest: Manifest, cuda: Any, device: str = "cuda") -> None:
        """Takes an open session.

        Args:
            session: an onnxruntime.InferenceSession.
            manifest: the bundle's.
            cuda: from `load_cuda`.
            device: ONNX Runtime's name of the device that `cuda` allocates on.
        """
        self._session = session
        self._graph = manifest.graphs.onnx
        self._cuda, self._device = cuda, device
        self.max_slots = manifest.model.max_position_embeddings

    def new_memory(self) -> CudaMemory:
        """Memory on the GPU."""
        return CudaMemory(self._cuda, ALIGNMENT)

    def bind(
        self, memory: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> CudaBinding:
        """See `Backend.bind`."""
        return CudaBinding(self._session, self._device, memory, inputs, outputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        return run_on_device(self, self.new_memory(), self._graph, inputs)


class CudaBinding:
    """Buffers bound to a session; those on the GPU once, numpy arrays before every run."""

    def __init__(
        self,
        session: Any,
        device: str,
        memory: CudaMemory,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, DeviceArray],
    ) -> None:
        from onnxruntime import OrtValue

        self._session, self._memory = session, memory
        self._binding = session.io_binding()
        self._buffers = (dict(inputs), dict(outputs))  # ONNX Runtime knows only their addresses
        self._host = {}
        self._fed_bytes = 0
        for name, one in inputs.items():
            if isinstance(one, DeviceArray):
                kind = ELEMENT_TYPES[one.dtype].onnx_number
                self._binding.bind_input(name, device, 0, kind, one.shape, one.address)
            else:
                self._host[name] = OrtValue.ortvalue_from_numpy(one)
                self._fed_bytes += one.nbytes
        for name, one in outputs.items():
            kind = ELEMENT_TYPES[one.dtype].onnx_number
            self._binding.bind_output(name, device, 0, kind, one.shape, one.address)

    def run(self) -> float:
        """See `Bound.run`. The outputs are complete when it returns."""
        start = time.perf_counter()
        try:
            # Binding an array of the host copies it to where its nodes run, then and only then.
            for name, value in self._host.items():
                self._binding.bind_ortvalue_input(name, value)
            # ONNX Runtime has a stream of its own, and waits for it before it returns.
            self._memory.wait()
            self._session.run_with_iobinding(self._binding)
            self._memory.host_bytes += self._fed_bytes
        except Exception as error:
            raise run_error(error) from error
        return time.perf_counter() - start


def open_cuda(
    bundle: Bundle, threads: int | None, accuracy_level: int | None = None
) -> CudaBackend:
    """Opens a verified bundle on the GPU; arguments and errors as for `open_session`.

    Raises:
        EngineError: cuda-bindings is not installed, or CUDA's libraries are not.
    """
    cuda = load_cuda()
    load_libraries()
    session = open_session(bundle, PROVIDER, PROVIDER_OPTIONS, threads, accuracy_level)
    return CudaBackend(session, bundle.manifest, cuda)


def load_libraries() -> None:
    """Loads CUDA's libraries from where pip has put them.

    ONNX Runtime looks beside its own folder, then where the system's loader does. What was
    installed into another folder of Python's path (`pip install --target`, a user's packages over
    the system's) is found by Python's own search.

    Source: onnxruntime.preload_dlls; CUDA 13's packages share `nvidia/cu13/lib`.
    """
    onnxruntime = load_onnxruntime()
    beside = Path(onnxruntime.__file__).parents[1]
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
        for name in (f"cu{str(onnxruntime.cuda_version).partition('.')[0]}", "cudnn"):
            folder = _find_folder(name)
            elsewhere = folder is not None and beside not in folder.parents
            onnxruntime.preload_dlls(
                cuda=name != "cudnn",
                cudnn=name == "cudnn",
                directory=str(folder) if elsewhere else None,
            )


def _find_folder(name: str) -> Path | None:
    """The folder nvidia/NAME/lib on Python's path."""
    spec = find_spec("nvidia")
    for root in [] if spec is None else spec.submodule_search_locations or ():
        if (folder := Path(root) / name / "lib").is_dir():
            return folder
    return None
