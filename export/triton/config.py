"""A Triton model repository from a bundle: `NAME/config.pbtxt` and `NAME/1/` with the model.

Triton serves the graph as it is, one call at a time: the client keeps the cache and feeds it back
(see the bundle's own engine for how). `depth` is an input like the others.

Source: Triton's model configuration (message ModelConfig of model_config.proto), its rule that
every tensor has at least one dimension, and what its two backends make of a scalar. int64 shape
tensors: pull request 91 of tensorrt_backend, June 2024; older releases refuse them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError
from export.options import TrtOptions
from export.tensorrt.target import choose_builder
from export.triton.folder import CONFIG, DEFAULT_NAME, SIGN, check_folder, publish_model
from runtime.backends.gpu import describe_gpu
from runtime.backends.trt_flavours import FLAVOURS, TENSORRT
from runtime.bundle.contract import ELEMENT_TYPES, TensorSpec
from runtime.bundle.plans import PlanSpec
from runtime.bundle.reader import Bundle, open_bundle

BACKENDS = ("onnxruntime", "tensorrt")
DEVICES = ("auto", "cpu", "gpu")
MODEL_VERSION = "1"
PAPERS = ("LICENSE", "ATTRIBUTION")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class TritonReport:
    """What was written.

    Attributes:
        name: of the model in the repository.
        bytes: size of the model's folder.
    """

    name: str
    bytes: int


def write_triton(
    bundle_dir: str | Path,
    out_dir: str | Path,
    *,
    backend: str = "onnxruntime",
    name: str = DEFAULT_NAME,
    device: str | None = None,
    instances: int = 1,
    plan: str | None = None,
    profiles: Sequence[int] | None = None,
) -> TritonReport:
    """Writes a bundle's model into the Triton model repository `out_dir`, atomically.

    Only the folder `name` in it is written: the other models of the repository stay.

    Args:
        bundle_dir: a bundle; every file is verified first.
        out_dir: the model repository; neither in the bundle nor around it. Its folder `name`, if it
            was written by an earlier call, is replaced as a whole, versions and all.
        backend: `onnxruntime`, or `tensorrt` for a plan of the bundle.
        name: the model's name, which clients give and its directory has.
        device: `gpu`, `cpu` or `auto`, which is a GPU where Triton has one; None: `gpu` for a plan,
            else `auto`.
        instances: copies of the model that serve at once, on each GPU where they run on GPUs.
        plan: the bundle's file that holds the plan (`plans/x.plan`), for `tensorrt` only.
        profiles: optimisation profiles of the plan that an instance may use, for `tensorrt` only;
            None for all of them, of which Triton takes the nearest that serves a request.

    Returns:
        What was written.

    Raises:
        BundleError: `bundle_dir` is not a whole bundle.
        ExportError: an option is not allowed, the repository may not be written to (see
            `export.triton.folder.check_folder`) or can't be, or the bundle holds no such plan or
            one that Triton can't serve; what was there is then untouched.
    """
    device = device or ("auto" if plan is None else "gpu")
    _check_options(backend, name, device, instances, plan, profiles)
    folder = check_folder(Path(out_dir), Path(bundle_dir), name)
    bundle = open_bundle(bundle_dir)
    if plan is None:
        config, files = render_config(bundle, name, device, instances), _graph_files(bundle)
    else:
        engine = _find_plan(bundle, plan)
        config = render_config(bundle, name, device, instances, engine, profiles)
        files = {plan: "model.plan"}
    try:
        with publish_model(folder) as staging:
            version = staging / MODEL_VERSION
            version.mkdir()
            (staging / CONFIG).write_text(config, encoding="utf-8")
            for source, target in files.items():
                shutil.copyfile(bundle.file(source), version / target)
            for paper in PAPERS:
                if paper in bundle.manifest.files:
                    shutil.copyfile(bundle.file(paper), staging / paper)
            size = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
    except OSError as error:
        raise ExportError(
            f"{folder}: can't write the model: {error.strerror or error}",
            "what was there is untouched",
        ) from error
    return TritonReport(name, size)


def _check_options(
    backend: str,
    name: str,
    device: str,
    instances: int,
    plan: str | None,
    profiles: Sequence[int] | None,
) -> None:
    for option, given, allowed in (("backend", backend, BACKENDS), ("device", device, DEVICES)):
        if given not in allowed:
            raise ExportError(f"{option}={given} is not Triton's", f"allowed: {', '.join(allowed)}")
    if not _NAME.fullmatch(name):
        raise ExportError(
            f"the model name {name!r} can't be a directory of a Triton repository",
            "allowed: letters, digits, '_', '-' and '.', the first no '-' or '.'",
        )
    if instances < 1:
        raise ExportError(f"instances={instances} would serve nothing", "allowed: 1 or more")
    if (backend == "tensorrt") != (plan is not None):
        wanted = "needs the name of a plan" if plan is None else "serves no plan"
        raise ExportError(
            f"Triton's {backend} backend {wanted}",
            "export with --format trt and name one of "
            "plans/*.plan with backend tensorrt, or use backend onnxruntime",
        )
    if profiles is not None and plan is None:
        raise ExportError(
            f"profiles={list(profiles)} are a plan's", "leave them out without a plan"
        )
    if backend == "tensorrt" and device == "cpu":
        raise ExportError("a TensorRT plan runs on no CPU", "allowed: device gpu")


def require_servable(options: TrtOptions) -> None:
    """Refuses plans that Triton could not load, before the time is spent on building them.

    Args:
        options: with which plans are to be built on this machine.

    Raises:
        ExportError: they would be of TensorRT for RTX, or can't be built here.
    """
    _require_tensorrt(choose_builder(options, describe_gpu()).flavour.name, "a Triton model")


def _require_tensorrt(flavour: str, subject: str) -> None:
    # Triton's tensorrt_backend links TensorRT, whose runtime reads its own plans only.
    if flavour != TENSORRT.name:
        title = FLAVOURS[flavour].title if flavour in FLAVOURS else flavour
        raise ExportError(
            f"{subject}: Triton loads plans of {TENSORRT.title}, not of {title}",
            "export with "
            "--trt trt on the GPU's machine, or with --format onnx for Triton's ONNX Runtime",
        )


def _graph_files(bundle: Bundle) -> dict[str, str]:
    """Files of the bundle that make the model, with the names Triton looks for."""
    graph = bundle.manifest.graphs.onnx.file
    # The graph names its data files, which must lie beside it under that name.
    return {graph: "model.onnx", **{name: name for name in bundle.manifest.graphs.onnx.data}}


def _find_plan(bundle: Bundle, plan: str) -> PlanSpec:
    plans = {one.file: one for one in bundle.manifest.plans}
    if plan not in plans:
        raise ExportError(
            f"the bundle {bundle.path} holds no {plan}",
            f"it holds {', '.join(plans) or 'no plan: export with --format trt'}",
        )
    _require_tensorrt(plans[plan].flavour, plan)
    return plans[plan]


def render_config(
    bundle: Bundle,
    name: str,
    device: str,
    instances: int,
    engine: PlanSpec | None = None,
    profiles: Sequence[int] | None = None,
) -> str:
    """Returns the text of config.pbtxt.

    `max_batch_size` is 0 and the batch is a dimension like the others: depth and the cache's length
    differ from request to request, so that Triton could not join requests.

    `depth` is `[1]` in graph and plans, since Triton knows no scalars.

    Args:
        bundle: whose tensors are described.
        name: of the model.
        device: `auto`, `gpu` or `cpu`.
        instances: copies that serve at once.
        engine: the plan, for the backend `tensorrt`; None for the graph, for `onnxruntime`.
        profiles: optimisation profiles of the plan; None for all of them.

    Raises:
        ExportError: the plan has no such profile.
    """
    graph, depth = bundle.manifest.graphs.onnx, bundle.manifest.depth
    backend = "onnxruntime" if engine is None else "tensorrt"
    shape_inputs = set() if engine is None else _shape_inputs(engine)
    group = [f"count: {instances}", f"kind: KIND_{device.upper()}"]
    if engine is not None:
        quoted = ", ".join(f'"{index}"' for index in _check_profiles(engine, profiles))
        group.append(f"profile: [ {quoted} ]")
    lines = [f'name: "{name}"', f'backend: "{backend}"', "max_batch_size: 0"]
    lines += _list("input", [_describe(spec, shape_inputs) for spec in graph.inputs])
    lines += _list("output", [_describe(spec) for spec in graph.outputs])
    lines += _list("instance_group", [group])
    facts = {
        "ouroboros.depth_min": depth.min,
        "ouroboros.depth_max": depth.max,
        "ouroboros.depth_default": depth.default,
        "ouroboros.precision": bundle.manifest.precision,
        "ouroboros.model.pooling": bundle.manifest.model.pooling,
        SIGN: bundle.manifest.checkpoint.sha256,
    }
    if engine is not None:  # Triton's own TensorRT must be of this version
        facts["ouroboros.tensorrt"] = engine.version
    for key, value in facts.items():
        lines += ["parameters {", f'  key: "{key}"']
        lines += [f'  value {{ string_value: "{value}" }}', "}"]
    return "\n".join(lines) + "\n"


def _shape_inputs(engine: PlanSpec) -> set[str]:
    """Inputs that TensorRT reads on the host, as numbers that decide shapes."""
    return {one.name for profile in engine.profiles for one in profile.values}


def _check_profiles(engine: PlanSpec, profiles: Sequence[int] | None) -> Sequence[int]:
    held = range(len(engine.profiles))
    if profiles is None:
        return held
    unknown = [index for index in profiles if index not in held]
    if unknown or not profiles:
        names = ", ".join(f"{index} ({engine.profiles[index].name})" for index in held)
        raise ExportError(
            f"profiles={list(profiles)} are not of {engine.file}", f"allowed: {names}"
        )
    return profiles


def _describe(spec: TensorSpec, shape_inputs: Collection[str] = ()) -> list[str]:
    dims = [size if isinstance(size, int) else -1 for size in spec.shape]
    lines = [
        f'name: "{spec.name}"',
        f"data_type: {ELEMENT_TYPES[spec.dtype].triton}",
        f"dims: [ {', '.join(map(str, dims))} ]",
    ]
    if spec.name in shape_inputs:
        lines.append("is_shape_tensor: true")
    return lines


def _list(field: str, messages: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"{field} ["]
    for number, message in enumerate(messages):
        lines += ["  {", *(f"    {line}" for line in message)]
        lines.append("  }" if number == len(messages) - 1 else "  },")
    return [*lines, "]"]
