"""The process that holds TensorRT's builder: a crash in it ends the child, not the export.

It reads one JSON request from stdin and writes one JSON event a line to stdout; see `main`.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import IO, Any

from export.errors import ExportError
from export.tensorrt.messages import clean, describe_builder_error, describe_parser_error
from runtime.errors import OuroError

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
_PARSING = "Parsing node: "
TIMING_CACHE = "timing.cache"  # beside the plan


def main() -> None:
    """Builds one plan, or puts new weights into one.

    Request to build: module, title, onnx, capabilities, profiles, refit, workspace_mb, timing_cache
    (a file to start from where it is there; what it becomes is written to TIMING_CACHE), plan (a
    file to write). To refit: module, title, onnx, refit_from (a plan), sha256 (its hash), changed
    (names of the weights that differ from the plan's), plan.

    Events: {"at": layer}, {"failed": problem, "cure": cure, "log": lines},
    {"errno": n, "strerror": s}, {"done": {version, bytes, sha256, layers, refittable, inputs}},
    where sha256 is the plan's and inputs are the shapes of the network's inputs as TensorRT reads
    them, by name, -1 what varies; {"done": {sha256}} of a refit.
    """
    _end_with_parent()
    request = json.loads(sys.stdin.buffer.readline())
    # TensorRT's libraries print to stdout themselves: keep it for the events alone.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    try:
        _emit(events, _answer(request, events))
    except OSError as error:
        _emit(events, {"errno": error.errno or 0, "strerror": error.strerror or str(error)})


def _end_with_parent() -> None:
    """Asks Linux to end this process with its parent.

    A thread that waits for stdin to close does not do it: none got to run during a build.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _emit(events: IO[str], event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")


def _answer(request: dict[str, Any], events: IO[str]) -> dict[str, Any]:
    from importlib import import_module

    try:
        trt = import_module(request["module"])
    except (ImportError, OSError) as error:
        return _fail(
            ExportError(
                f"{request['title']} can't be loaded: {clean(str(error))}",
                "install it again; `ouro doctor` says how",
            )
        )
    return _refit(trt, request) if "refit_from" in request else _build(trt, request, events)


def _refit(trt: Any, request: dict[str, Any]) -> dict[str, Any]:
    from pathlib import Path

    from export.tensorrt.refit_plan import refit_plan
    from runtime.bundle.plans import read_plan
    from runtime.errors import RuntimeFault

    source = Path(request["refit_from"])
    try:
        plan = read_plan(source, request["sha256"])
        refitted = refit_plan(plan, source.name, Path(request["onnx"]), request["changed"], trt)
    except RuntimeFault as error:
        return _fail(error)
    Path(request["plan"]).write_bytes(refitted)
    return {"done": {"sha256": hashlib.sha256(refitted).hexdigest()}}


def _build(trt: Any, request: dict[str, Any], events: IO[str]) -> dict[str, Any]:
    title = request["title"]
    known = known_capabilities(trt)
    refused = [one for one in request["capabilities"] if known and one not in known]
    if refused:
        return _fail(refuse_capability(title, refused[0], known))
    logger = _make_logger(trt, events)
    builder = trt.Builder(logger)
    if not builder:
        return _fail(describe_builder_error(title, logger.errors, ""), logger.errors)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        first = parser.get_error(0) if parser.num_errors else None
        failure = (
            describe_builder_error(title, logger.errors, logger.at)
            if first is None
            else describe_parser_error(
                title, first.node_operator(), first.node_name(), first.desc()
            )
        )
        return _fail(failure, logger.errors)
    config = builder.create_builder_config()
    _configure(trt, config, request, known)
    timed = not known  # TensorRT-RTX times nothing: its cache functions do nothing
    kept = request["timing_cache"] if timed else None
    if timed and not _set_timing_cache(config, kept) and kept is not None:
        failure = ExportError(
            f"timing_cache={kept} is not of {title} {trt.__version__} and this GPU",
            "give a file that is not there yet",
        )
        return _fail(failure, logger.errors)
    monitor = _make_monitor(trt, events)  # the name keeps it alive while TensorRT uses it
    config.progress_monitor = monitor
    for number, profile in enumerate(request["profiles"]):
        if config.add_optimization_profile(_make_profile(builder, profile)) != number:
            failure = describe_builder_error(title, logger.errors, f"profile {profile['name']}")
            return _fail(failure, logger.errors)
    refittable = _mark_refittable(trt, network) if request["refit"] else 0
    if request["refit"] and not refittable:
        failure = ExportError(
            f"{title} keeps no weight of this graph replaceable", "leave --refit out"
        )
        return _fail(failure, logger.errors)
    layers = network.num_layers
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {one.name: list(one.shape) for one in inputs}
    written, digest = _write_plan(trt, builder, network, config, request["plan"])
    if not written:
        failure = describe_builder_error(title, logger.errors, "")
        return _fail(failure, logger.errors)
    if kept is not None:
        with open(TIMING_CACHE, "wb") as file:
            file.write(config.get_timing_cache().serialize())
    done = {
        "version": str(trt.__version__),
        "bytes": written,
        "sha256": digest,
        "layers": layers,
        "refittable": refittable,
        "inputs": shapes,
    }
    return {"done": done}


def known_capabilities(trt: Any) -> list[str]:
    """What a flavour can build for ahead of time; empty where it builds for its own GPU only."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    digits = [name.removeprefix("SM") for name in members if name.startswith("SM")]
    return [f"{one[:-1]}.{one[-1]}" for one in digits]


def _fail(error: OuroError, log: Sequence[str] = ()) -> dict[str, Any]:
    return {"failed": error.problem, "cure": error.cure, "log": list(log)}


def refuse_capability(title: str, capability: str, known: list[str]) -> ExportError:
    """The error for a compute capability that a flavour does not have.

    Args:
        title: of the flavour.
        capability: what was asked for.
        known: what it has.
    """
    cure = f"allowed: {', '.join(known)}"
    if capability in ("9.0", "10.0", "10.3"):
        name = "Hopper" if capability == "9.0" else "a data-centre Blackwell"
        cure += f"; {name} GPU needs `tensorrt`: run --trt trt on that machine"
    return ExportError(f"compute_capabilities={capability} is not one of {title}", cure)


def _configure(trt: Any, config: Any, request: dict[str, Any], known: list[str]) -> None:
    # Matrix products of float32 in TF32 keep 10 bits: far outside the parity bounds.
    config.clear_flag(trt.BuilderFlag.TF32)
    if request["refit"]:
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    if request["workspace_mb"] is not None:
        size = request["workspace_mb"] << 20
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    if known:
        config.num_compute_capabilities = len(request["capabilities"])
        for index, one in enumerate(request["capabilities"]):
            name = f"SM{one.replace('.', '')}"
            config.set_compute_capability(trt.ComputeCapability.__members__[name], index)


def _set_timing_cache(config: Any, start: str | None) -> bool:
    """Gives the builder a file's timing cache, or an empty one; false where it refuses the file."""
    held = b""
    if start is not None:
        with contextlib.suppress(FileNotFoundError), open(start, "rb") as file:
            held = file.read()
    cache = config.create_timing_cache(held)
    return cache is not None and bool(config.set_timing_cache(cache, False))


def _make_profile(builder: Any, spec: dict[str, Any]) -> Any:
    profile = builder.create_optimization_profile()
    for one in spec["shapes"]:
        profile.set_shape(one["name"], one["min"], one["opt"], one["max"])
    for one in spec["values"]:
        profile.set_shape_input(one["name"], one["min"], one["opt"], one["max"])
    return profile


def _mark_refittable(trt: Any, network: Any) -> int:
    """Marks every floating-point weight, inside the loop too; returns how many."""
    floats = (trt.float32, trt.float16, trt.bfloat16)
    marked = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.CONSTANT and layer.get_output(0).dtype in floats:
            marked += bool(network.mark_weights_refittable(layer.name))
    return marked


def _write_plan(trt: Any, builder: Any, network: Any, config: Any, file: str) -> tuple[int, str]:
    """Builds and writes the plan; returns its bytes, 0 where the build failed, and its sha256."""

    class Writer(trt.IStreamWriter):
        def __init__(self, opened: IO[bytes]) -> None:
            trt.IStreamWriter.__init__(self)
            self.opened = opened
            self.written = 0
            self.digest = hashlib.sha256()
            self.error: OSError | None = None

        def write(self, data: Any) -> int:
            # An exception must not cross TensorRT's frames: it is kept and raised behind them.
            try:
                rest = memoryview(data).cast("B")
                self.digest.update(rest)
                while rest:  # one write ends early on a full disk, and after 2 GB
                    rest = rest[self.opened.write(rest) :]
            except OSError as error:
                self.error = error
                return 0
            self.written += len(data)
            return len(data)

    with open(file, "wb", buffering=0) as opened:
        writer = Writer(opened)
        built = builder.build_serialized_network_to_stream(network, config, writer)
        if writer.error is not None:
            raise writer.error
    return writer.written if built else 0, writer.digest.hexdigest()


def _make_logger(trt: Any, events: IO[str]) -> Any:
    error = trt.ILogger.Severity.ERROR

    class Logger(trt.ILogger):
        """Keeps the errors, and tells the parent which node the parser is at."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.at = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= error:
                self.errors.append(message)
            elif message.startswith(_PARSING):
                self.at = message.removeprefix(_PARSING).strip()[:200]
                _emit(events, {"at": f"the node {self.at}"})

    return Logger()


def _make_monitor(trt: Any, events: IO[str]) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Tells the parent which phase the builder is in."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            _emit(events, {"at": f"the phase {phase!r}"})

        def step_complete(self, phase: str, step: int) -> bool:
            return True

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


if __name__ == "__main__":
    main()
