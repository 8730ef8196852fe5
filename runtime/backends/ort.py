"""ONNX Runtime: opens a bundle's graph and, on the CPU, runs it on buffers bound once."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from runtime.backends.gpu import INSTALL_CUDA
from runtime.backends.memory import HostMemory, Memory
from runtime.backends.ort_library import load_onnxruntime
from runtime.bundle.contract import ELEMENT_TYPES
from runtime.bundle.external_data import external_files
from runtime.errors import BundleError, EngineError

if TYPE_CHECKING:
    from runtime.bundle.manifest import Manifest
    from runtime.bundle.reader import Bundle

DTYPES = {one.ort: one.name for one in ELEMENT_TYPES.values()}

# Where in ONNX Runtime's own source an error arose: file, line, function with its arguments.
SOURCE_PLACE = re.compile(r"/onnxruntime_src/\S+:\d+ [^()]*\(.*?\)(?: const)? ")

Array = NDArray[Any]


class Binding:
    """Input and output buffers bound to a session; `run` reads and writes numpy memory in place."""

    def __init__(
        self, session: Any, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        from onnxruntime import OrtValue

        self._session = session
        self._binding = session.io_binding()
        self._buffers = (dict(inputs), dict(outputs))  # OrtValues do not own the numpy memory
        self._values = []
        for name, array in inputs.items():
            self._values.append(OrtValue.ortvalue_from_numpy(_shared(name, array)))
            self._binding.bind_ortvalue_input(name, self._values[-1])
        for name, array in outputs.items():
            self._values.append(OrtValue.ortvalue_from_numpy(_shared(name, array)))
            self._binding.bind_ortvalue_output(name, self._values[-1])

    def run(self) -> float:
        """Runs the graph once and returns the seconds spent inside ONNX Runtime.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        start = time.perf_counter()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise run_error(error) from error
        return time.perf_counter() - start


class CpuBackend:
    """`runtime.backends.memory.Backend` on the CPU."""

    name = "cpu"
    max_batch: int | None = None
    max_new_tokens: int | None = None
    max_logits: int | None = None
    call_tokens = 32  # of SmolLM2's size, with two cores: docs/results.md

    def __init__(self, session: Any, manifest: Manifest) -> None:
        """Takes an onnxruntime.InferenceSession, from `open_session`."""
        self._session = session
        self.max_slots = manifest.model.max_position_embeddings

    def new_memory(self) -> HostMemory:
        """Numpy arrays."""
        return HostMemory()

    def bind(
        self, memory: Memory, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> Binding:
        """See `Backend.bind`."""
        return Binding(self._session, inputs, outputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        return run_once(self._session, inputs)


def open_session(
    bundle: Bundle,
    provider: str,
    provider_options: Mapping[str, str],
    threads: int | None,
    accuracy_level: int | None = None,
) -> Any:
    """Opens the graph of a verified bundle.

    Args:
        bundle: from `open_bundle`.
        provider: the execution provider's name; it is never replaced by another.
        provider_options: its options.
        threads: threads inside an operator; None lets ONNX Runtime use every core.
        accuracy_level: of quantised products, 1 or 4; None takes the manifest's.

    Returns:
        An onnxruntime.InferenceSession, safe to run from several threads.

    Raises:
        EngineError: the provider can't be loaded.
        BundleError: the graph does not load or is not the one its manifest describes.
    """
    onnxruntime, manifest = load_onnxruntime(), bundle.manifest
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is said once, by our error
    # Whatever the file's name: `_check_data` looked at an ONNX file.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if manifest.quantization is not None:
        level = accuracy_level or manifest.quantization.accuracy_level
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    file = bundle.file(manifest.graphs.onnx.file)
    _check_data(file, manifest)
    try:
        session = onnxruntime.InferenceSession(
            str(file),
            sess_options=options,
            providers=[(provider, dict(provider_options))],
            enable_fallback=0,
        )
    except Exception as error:
        raise BundleError(
            f"ONNX Runtime cannot load {file}: {_one_line(error)}",
            "update ONNX Runtime, or export the bundle again",
        ) from error
    if provider not in session.get_providers():  # ONNX Runtime goes on without it
        raise EngineError(
            f"ONNX Runtime could not load its {provider}: its libraries are missing or of another "
            f"version",
            f"{INSTALL_CUDA}, or take backend cpu",
        )
    _check_tensors(session, manifest)
    return session


def check_cpu(manifest: Manifest) -> None:
    """Refuses a bundle of a precision that the CPU does not run.

    Raises:
        EngineError: it is bfloat16.
    """
    if manifest.precision == "bf16":
        raise EngineError(
            "the cpu engine has no bfloat16 arithmetic",
            "run this bundle on a GPU, or export with --precision fp32, fp16, int8 or int4",
        )


def open_cpu(bundle: Bundle, threads: int | None, accuracy_level: int | None = None) -> CpuBackend:
    """Opens a verified bundle on the CPU; arguments and errors as for `open_session`.

    Raises:
        EngineError: as `check_cpu`.
    """
    check_cpu(bundle.manifest)
    session = open_session(bundle, "CPUExecutionProvider", {}, threads, accuracy_level)
    return CpuBackend(session, bundle.manifest)


def run_once(session: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Runs the graph on arrays, cast to the types of its inputs; returns every output by name.

    Raises:
        EngineError: ONNX Runtime failed.
    """
    names = [output.name for output in session.get_outputs()]
    types = {tensor.name: DTYPES.get(tensor.type) for tensor in session.get_inputs()}
    try:
        typed = {name: array.astype(types[name], copy=False) for name, array in inputs.items()}
        return dict(zip(names, session.run(names, typed), strict=True))
    except Exception as error:
        raise run_error(error) from error


def _shared(name: str, array: Array) -> Array:
    if not array.flags.c_contiguous:
        raise EngineError(f"the buffer of {name} is not contiguous", "this is a bug in the runtime")
    return array


def _check_data(file: Path, manifest: Manifest) -> None:
    """ONNX Runtime opens whatever file the graph names: only verified ones may be named."""
    spec = manifest.graphs.onnx
    folder = PurePosixPath(spec.file).parent
    named = {str(folder / name) for name in external_files(file)}
    if named != set(spec.data):
        odd = min(named ^ set(spec.data))
        raise BundleError(
            f"cannot load {file}: the data file {odd!r} is in the graph: {odd in named}, in the "
            f"manifest: {odd in spec.data}",
            "export it again",
        )
    for name in spec.data:
        _check_single(file.parent.joinpath(PurePosixPath(name).relative_to(folder)))


def _check_single(data: Path) -> None:
    """ONNX Runtime opens no data file that is known by another name too, and does not say so."""
    cure = f"put a copy in its place: cp {data} {data}.copy && mv {data}.copy {data}"
    if data.is_symlink():
        raise BundleError(f"{data} is a symbolic link, which ONNX Runtime does not open", cure)
    if (links := data.stat().st_nlink) > 1:
        raise BundleError(
            f"{data} has {links} hard links (cp -al and some backups make them), and ONNX Runtime "
            f"opens no weights that have another name",
            cure,
        )


def _check_tensors(session: Any, manifest: Manifest) -> None:
    """The graph's tensors must be the manifest's, which are the contract's."""
    spec = manifest.graphs.onnx
    sides = (
        ("input", session.get_inputs(), spec.inputs),
        ("output", session.get_outputs(), spec.outputs),
    )
    for side, actual, listed in sides:
        found = {t.name: (DTYPES.get(t.type, t.type), tuple(t.shape)) for t in actual}
        said = {t.name: (t.dtype, t.shape) for t in listed}
        for name in sorted(found.keys() | said.keys()):
            if not (name in found and name in said):
                raise BundleError(
                    f"the graph's {side} {name} is in the graph: {name in found}, in the manifest:"
                    f" {name in said}",
                    "export it again",
                )
            (dtype, shape), (wanted, dimensions) = found[name], said[name]
            # ONNX Runtime infers the shapes of outputs: a named dimension may come back a number.
            if (dtype, len(shape)) != (wanted, len(dimensions)) or not all(
                size == other or (side == "output" and isinstance(other, str))
                for size, other in zip(shape, dimensions, strict=True)
            ):
                raise BundleError(
                    f"the graph's {side} {name} is {_shown(*found[name])}, its manifest says "
                    f"{_shown(*said[name])}",
                    "export it again",
                )


def _shown(dtype: str, shape: tuple[int | str, ...]) -> str:
    return f"{dtype} [{', '.join(map(str, shape))}]"


def run_error(error: Exception) -> EngineError:
    """ONNX Runtime's error while it ran, as one of ours."""
    return EngineError(
        f"ONNX Runtime failed: {_one_line(error)}",
        "where memory was short, give fewer or shorter prompts; else run `ouro check` on the "
        "bundle",
    )


def _one_line(error: Exception) -> str:
    text = SOURCE_PLACE.sub("", " ".join(str(error).split()))
    return text[:300] or type(error).__name__
