"""Builds TensorRT plans from an ONNX graph, in a child process, and describes them.

The graph's Loop stays a loop of TensorRT's with the Controller inside, `depth` its trip count; the
network is strongly typed, so that the plan computes in the types that the graph names.

TensorRT is given a copy of the graph: `depth` is [1] in it, which Triton can describe, and no two
weights share their bytes. What is in the bundle is left as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from export.errors import ExportError
from export.tensorrt.child import TIMING_CACHE
from export.tensorrt.messages import describe_crash
from export.tensorrt.options import (
    TrtOptions,
    check_options,
    choose_capabilities,
    make_profiles,
)
from runtime.backends.gpu import Gpu, describe_gpu
from runtime.backends.trt_flavours import (
    RTX,
    Installed,
    check_libraries,
    choose_flavour,
    find_flavours,
)
from runtime.bundle.contract import DEPTH, INPUT_IDS, LOGIT_INDEX, TensorSpec
from runtime.bundle.plans import PlanSpec, ProfileSpec, hash_graph
from runtime.bundle.reader import hash_file
from runtime.errors import EngineError

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class GraphFacts:
    """What a plan needs to know of the model its graph was made from.

    Attributes:
        max_depth: most recurrences of the bundle.
        default_depth: the bundle's default.
        max_positions: the model's.
        precision: the bundle's.
        whole_prompt: a prompt comes in one call, as `mean` pooling needs.
    """

    max_depth: int
    default_depth: int
    max_positions: int
    precision: str
    whole_prompt: bool = False


@dataclass(frozen=True)
class Target:
    """What plans are built with, and for.

    Attributes:
        installed: the TensorRT.
        capabilities: compute capabilities of the GPUs that they will run on.
        gpu: of this machine.
    """

    installed: Installed
    capabilities: tuple[str, ...]
    gpu: Gpu | None


def choose_target(options: TrtOptions) -> Target:
    """Chooses a TensorRT and the compute capabilities, from what this machine has.

    Args:
        options: the user's.

    Raises:
        ExportError: no TensorRT that fits is installed, or there is no GPU where one is needed.
    """
    gpu = describe_gpu()
    installed = choose_builder(options, gpu)
    flavour = installed.flavour
    capabilities = choose_capabilities(options, flavour, gpu)
    if options.refit and gpu is None:
        raise ExportError(
            f"--refit: {flavour.title} compiles replaceable weights on a GPU, and CUDA shows none "
            "here",
            "build on the GPU's machine or leave --refit out",
        )
    return Target(installed, capabilities, gpu)


def build_plans(
    onnx_file: Path,
    out_dir: Path,
    options: TrtOptions,
    facts: GraphFacts,
    report: Callable[[str], None] | None = None,
) -> list[PlanSpec]:
    """Builds one plan for all compute capabilities asked for, and writes it into `out_dir`.

    Nothing is left behind where this fails or is interrupted.

    Args:
        onnx_file: a bundle's graph, its data files beside it.
        out_dir: the folder of the plans; made where it is missing. `PlanSpec.file` starts with
            its name.
        options: the user's.
        facts: of the model.
        report: called with a line of progress now and then.

    Returns:
        One entry a plan.

    Raises:
        ExportError: an option is not allowed, no TensorRT is installed, the graph has no input
            `depth`, or TensorRT can't build it.
        OSError: a file can't be written.
    """
    say = report or (lambda line: None)
    max_seq = check_options(options, facts.max_positions)
    target = choose_target(options)
    installed, capabilities, gpu = target.installed, target.capabilities, target.gpu
    flavour = installed.flavour
    graph, files = read_graph(onnx_file)
    inputs = _inputs(graph)
    names = {one.name for one in inputs}
    if missing := [one for one in (INPUT_IDS, DEPTH, LOGIT_INDEX) if one not in names]:
        raise ExportError(f"the graph has no input {missing[0]}", "export the checkpoint again")
    profiles = make_profiles(
        inputs, options, max_seq, facts.max_depth, facts.default_depth, facts.whole_prompt
    )
    name = f"{flavour.option}-{'-'.join('sm' + c.replace('.', '') for c in capabilities)}.plan"
    say(f"building {name} with {flavour.title} {installed.version}")
    with plan_folders(out_dir) as (copy, staging):
        given = write_plan_graph(graph, copy)
        done = build_in_child(
            {
                "module": installed.module,
                "title": flavour.title,
                "onnx": str(given.resolve()),
                "plan": name,
                "capabilities": capabilities,
                "profiles": [asdict(profile) for profile in profiles],
                "refit": options.refit,
                "workspace_mb": options.workspace_mb,
                "timing_cache": _absolute(options.timing_cache),
            },
            flavour.title,
            staging,
        )
        os.replace(staging / name, out_dir / name)
        if options.timing_cache is not None:
            _keep_timing_cache(staging / TIMING_CACHE, options.timing_cache)
    spec = _describe(f"{out_dir.name}/{name}", installed, capabilities, profiles, gpu, facts, done)
    hashes = {file.name: hash_file(file) for file in files}
    return [_with_graph(spec, hashes)]


@contextmanager
def plan_folders(out_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Two folders that are there for the block only: for the graph, and for what is made from it.

    Args:
        out_dir: the folder of the plans, which they lie in; it is made, and removed again where
            it was not there before and the block fails.
    """
    existed = out_dir.is_dir()
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".graph-", dir=out_dir) as copy,
            tempfile.TemporaryDirectory(prefix=".building-", dir=out_dir) as staging,
        ):
            yield Path(copy), Path(staging)
    except BaseException:
        if not existed:
            shutil.rmtree(out_dir, ignore_errors=True)
        raise


def write_plan_graph(graph: ir.Model, folder: Path) -> Path:
    """Writes a graph the way TensorRT takes it, see this module.

    Args:
        graph: of a bundle; changed in place.
        folder: where it and its data file are written.

    Returns:
        The file to give to TensorRT's parser.

    Raises:
        OSError: it can't be written.
    """
    from export.graph.storage import save_graph

    file = folder / "plan.onnx"
    save_graph(graph, file, share=False)
    return file


def build_in_child(request: dict[str, Any], title: str, folder: Path) -> dict[str, Any]:
    """Runs export.tensorrt.child and waits for it; it is ended with this call, whatever ends it.

    Args:
        request: as export.tensorrt.child reads it.
        title: the flavour, for messages.
        folder: where it runs; paths in the request start there.

    Returns:
        The child's `done`.

    Raises:
        ExportError: TensorRT refused or crashed; its log is a note of the exception.
        OSError: the plan can't be written.
    """
    with tempfile.TemporaryFile() as noise:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "export.tensorrt.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            env=child_environment(),
            cwd=folder,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the child
        )
        try:
            return _follow(child, request, title, noise)
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


def child_environment() -> dict[str, str]:
    """The environment of a child that imports what this process can."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _follow(
    child: subprocess.Popen[bytes], request: dict[str, Any], title: str, noise: IO[bytes]
) -> dict[str, Any]:
    if child.stdin is None or child.stdout is None:
        raise ExportError(f"the builder of {title} has no pipes", "this is a bug in ouroboros")
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once: its exit status says how
    last = ""
    for line in child.stdout:
        event = json.loads(line)
        if "at" in event:
            last = str(event["at"])
        elif "done" in event:
            return dict(event["done"])
        elif "errno" in event:
            raise OSError(event["errno"], event["strerror"], request["plan"])
        elif "failed" in event:
            raise _with_log(ExportError(event["failed"]), event["log"])
    status = child.wait()
    noise.seek(0)
    log = noise.read().decode(errors="replace").splitlines()
    raise _with_log(ExportError(describe_crash(title, status, last)), log)


def _with_log(error: ExportError, log: Sequence[str]) -> ExportError:
    """Keeps TensorRT's own words for `--debug`, outside the one line."""
    if log:
        error.add_note("TensorRT said:\n" + "\n".join(log[-50:]))
    return error


def choose_builder(options: TrtOptions, gpu: Gpu | None) -> Installed:
    """The TensorRT that `build_plans` takes.

    Args:
        options: the user's.
        gpu: of this machine.

    Raises:
        ExportError: none that fits is installed, or not as a whole, or it does not do what the
            options ask for.
    """
    try:
        chosen = choose_flavour(
            options.flavour, bool(options.compute_capabilities), gpu, find_flavours()
        )
        check_libraries(chosen)
    except EngineError as error:
        raise ExportError(error.problem, error.cure) from error
    # Its functions are there, but do nothing since version 1.2 (its guide, "Timing Cache").
    if options.timing_cache is not None and chosen.flavour == RTX:
        raise ExportError(
            f"--timing-cache: {RTX.title} times no kernels while it builds and keeps no such file",
            "leave the option out, or take --trt trt",
        )
    return chosen


def _absolute(file: Path | None) -> str | None:
    return None if file is None else str(file.absolute())


def _keep_timing_cache(written: Path, target: Path) -> None:
    """Puts a timing cache where the user wants it, perhaps on another disk, whole or not at all."""
    target = target.resolve()
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(written, staged)
        os.replace(staged, target)
    except OSError as error:
        raise ExportError(
            f"--timing-cache {target} can't be written: {error.strerror or error}",
            "it is as it was",
        ) from error
    finally:
        staged.unlink(missing_ok=True)


def read_graph(onnx_file: Path) -> tuple[ir.Model, list[Path]]:
    """The graph, and every file that it consists of.

    Raises:
        ExportError: it is not an ONNX graph.
    """
    import onnx_ir as ir

    try:
        model = ir.load(onnx_file)
    except Exception as error:  # protobuf's errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{onnx_file} is not an ONNX graph: {reason}") from error
    data = {
        onnx_file.parent / tensor.location
        for graph in (model.graph, *model.graph.subgraphs())
        for value in graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    }
    return model, [onnx_file, *sorted(data)]


def _inputs(graph: ir.Model) -> list[TensorSpec]:
    return [
        TensorSpec(
            str(value.name),
            str(value.dtype).lower(),
            tuple(size if isinstance(size, int) else str(size) for size in value.shape or ()),
        )
        for value in graph.graph.inputs
    ]


def _describe(
    file: str,
    installed: Installed,
    capabilities: tuple[str, ...],
    profiles: tuple[ProfileSpec, ...],
    gpu: Gpu | None,
    facts: GraphFacts,
    done: dict[str, Any],
) -> PlanSpec:
    return PlanSpec(
        file=file,
        flavour=installed.flavour.name,
        version=installed.version or done["version"],
        cuda=installed.cuda or (gpu.cuda if gpu is not None else ""),
        compute_capabilities=capabilities,
        precision=facts.precision,
        refittable=done["refittable"] > 0,
        graph_sha256="",
        profiles=profiles,
        max_new_tokens=_most(profiles, INPUT_IDS),
        max_logits=_most(profiles, LOGIT_INDEX),
    )


def _most(profiles: Sequence[ProfileSpec], name: str) -> int:
    """The longest row that an input may have, in any profile: its dimension 1."""
    shapes = (one for profile in profiles for one in profile.shapes if one.name == name)
    return max(one.max[1] for one in shapes)


def _with_graph(spec: PlanSpec, hashes: dict[str, str]) -> PlanSpec:
    from dataclasses import replace

    return replace(spec, graph_sha256=hash_graph(hashes))
