"""Runs a TensorRT plan on this machine's GPU, its cache in GPU memory.

The plan's hash, version and GPU are compared before TensorRT sees it. `depth` is a shape tensor, a
vector of one number: TensorRT reads it on the host, everything else lies in device memory.

Written without a GPU at hand: tests/runtime/backends/test_trt.py runs it on stand-ins for CUDA and
TensorRT, `make gpu-test` on the real ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from runtime.backends.cuda import CALL_TOKENS, CudaMemory, DeviceArray, load_cuda, run_on_device
from runtime.backends.machine import Machine, check_plan_fits
from runtime.backends.trt_flavours import load_module
from runtime.bundle.contract import INPUT_IDS, PAST_PREFIX
from runtime.bundle.plans import PlanSpec, ProfileSpec, read_plan
from runtime.errors import EngineError

if TYPE_CHECKING:
    from runtime.bundle.manifest import GraphSpec

ALIGNMENT = 256  # bytes, of every tensor (IExecutionContext::setTensorAddress)

Array = NDArray[Any]


class TrtBackend:
    """`runtime.backends.memory.Backend` on a loaded plan. Runs from several threads take turns.

    Attributes:
        spec: the plan's entry in the manifest.
        graph: the tensors of the graph it was built from.
        max_slots: the longest past that every profile takes.
        max_batch: the most rows that every profile takes; None where none has rows.
        max_new_tokens: the most tokens a row that the plan takes in one call.
        max_logits: the most logits a row that it gives in one call.
    """

    name = "trt"
    call_tokens = CALL_TOKENS

    def __init__(self, spec: PlanSpec, graph: GraphSpec, plan: bytes, trt: Any, cuda: Any) -> None:
        """Loads a plan whose hash was compared; most callers want `open_plan`.

        Raises:
            EngineError: no GPU, or TensorRT refuses the plan.
        """
        self.spec = spec
        self.graph = graph
        self.max_slots = min(_longest_past(profile) for profile in spec.profiles)
        self.max_batch = _most_rows(spec.profiles)
        self.max_new_tokens: int | None = spec.max_new_tokens
        self.max_logits: int | None = spec.max_logits
        self._cuda = cuda
        self._memory = self.new_memory()
        self._lock = threading.Lock()
        self._logger = _make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"{spec.file}: TensorRT cannot load it: {self._logger.last}",
                "free memory on the GPU, or export again with --format trt",
            )
        self._contexts: dict[int, Any] = {}
        self._set_by: dict[int, object] = {}

    def new_memory(self) -> CudaMemory:
        """Memory on the GPU."""
        return CudaMemory(self._cuda, ALIGNMENT)

    def bind(
        self, memory: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> TrtBinding:
        """See `Backend.bind`.

        Raises:
            EngineError: no profile takes these shapes.
        """
        number = choose_profile(self.spec.profiles, inputs)
        by_value = {one.name for one in self.spec.profiles[number].values}
        return TrtBinding(self, number, memory, inputs, outputs, by_value)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        return run_on_device(self, self.new_memory(), self.graph, inputs)

    def execute(self, number: int, memory: CudaMemory, binding: TrtBinding) -> None:
        """Runs a binding on the context of a profile, and waits for it.

        Raises:
            EngineError: TensorRT failed.
        """
        with self._lock:
            context = self._context(number)
            if self._set_by.get(number) is not binding.token:
                self._set_by.pop(number, None)
                for name, shape in binding.shapes.items():
                    self._must(context.set_input_shape(name, shape))
                for name, address in binding.addresses.items():
                    self._must(context.set_tensor_address(name, address))
                self._set_by[number] = binding.token
            self._must(context.execute_async_v3(memory.stream))
            memory.wait()

    def close(self) -> None:
        """Frees the plan; the session can't be used afterwards."""
        self._contexts.clear()
        self._engine = None

    def __enter__(self) -> TrtBackend:
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
                    f"{self.spec.profiles[number].name}: {self._logger.last}",
                    "free memory on the GPU, or export again with a smaller --max-batch or "
                    "--max-seq",
                )
            self._memory.wait()  # runs are on streams of their own
            self._contexts[number] = context
        return self._contexts[number]

    def _must(self, done: bool) -> None:
        if not done:
            raise EngineError(
                f"{self.spec.file}: TensorRT failed: {self._logger.last}",
                "free memory on the GPU, or run `ouro check` on the bundle",
            )


class TrtBinding:
    """Buffers for one profile of a plan; numpy arrays are copied to the GPU by every run.

    Attributes:
        token: what a context remembers to know whose addresses it holds.
        shapes: of the inputs that lie on the GPU.
        addresses: of every tensor.
    """

    def __init__(
        self,
        session: TrtBackend,
        number: int,
        memory: CudaMemory,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, DeviceArray],
        by_value: set[str],
    ) -> None:
        self.token = object()
        self._session, self._number, self._memory = session, number, memory
        self._buffers = (dict(inputs), dict(outputs))  # TensorRT knows only their addresses
        self._staged: list[tuple[DeviceArray, Array]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        for name, one in inputs.items():
            if name in by_value:
                self.addresses[name] = one.ctypes.data  # read anew by every run
                continue
            if isinstance(one, DeviceArray):
                held = one
            else:
                held = memory.zeros(one.shape, str(one.dtype))
                self._staged.append((held, one))
            self.shapes[name] = held.shape
            self.addresses[name] = held.address
        self.addresses |= {name: one.address for name, one in outputs.items()}

    def run(self) -> float:
        """See `Bound.run`. The outputs are complete when it returns."""
        start = time.perf_counter()
        for held, array in self._staged:
            self._memory.write(held, array)
        self._session.execute(self._number, self._memory, self)
        return time.perf_counter() - start


def open_plan(
    file: Path, spec: PlanSpec, graph: GraphSpec, sha256: str, machine: Machine
) -> TrtBackend:
    """Loads a plan onto the GPU.

    Args:
        file: the plan.
        spec: its entry in the manifest.
        graph: the bundle's graph, which names the tensors.
        sha256: of the plan, from the manifest.
        machine: from `find_machine`.

    Raises:
        BundleError: the plan is not the one that the manifest lists; it was not loaded.
        EngineError: it does not fit this machine, or TensorRT refuses it.
    """
    installed = check_plan_fits(spec, machine)
    plan = read_plan(file, sha256)
    cuda = load_cuda()
    return TrtBackend(spec, graph, plan, load_module(installed), cuda)


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
    raise EngineError(problem, "export again with a larger --max-batch, --max-seq or --max-depth")


def _longest_past(profile: ProfileSpec) -> int:
    """The most slots of a cache: dimension -2 of a layer's keys."""
    past = [one.max[-2] for one in profile.shapes if one.name.startswith(PAST_PREFIX)]
    return min(past, default=0)


def _most_rows(profiles: Sequence[ProfileSpec]) -> int | None:
    """The most rows of a batch: dimension 0 of the token ids."""
    shapes = (one for profile in profiles for one in profile.shapes)
    return min((one.max[0] for one in shapes if one.name == INPUT_IDS), default=None)


def _outside(profile: ProfileSpec, inputs: Mapping[str, Array]) -> str | None:
    """What of the inputs a profile does not take; None where it takes all."""
    for kind, ranges in (("shape", profile.shapes), ("value", profile.values)):
        for one in ranges:
            if one.name not in inputs:
                raise EngineError(
                    f"the input {one.name} is missing", "give every input of the graph"
                )
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
