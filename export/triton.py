"""A Triton model repository from a bundle: `NAME/config.pbtxt` and `NAME/1/` with the model.

Triton serves the graph as it is, one call at a time: the client keeps the cache and feeds it back
(see the bundle's own engine for how). `depth` is an input like the others.

Source: Triton's model configuration (message ModelConfig of model_config.proto), its rule that
every tensor has at least one dimension, and what its two backends make of a scalar.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError
from ouroboros.atomic import publish
from runtime.bundle import Bundle, open_bundle
from runtime.manifest import TensorSpec

BACKENDS = ("onnxruntime", "tensorrt")
DEVICES = ("cpu", "gpu")
MODEL_VERSION = "1"
PAPERS = ("LICENSE", "ATTRIBUTION")
_DATA_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# TensorRT reads these on the host, as numbers that decide shapes.
_SHAPE_INPUTS = ("depth",)


@dataclass(frozen=True)
class TritonReport:
    """What was written.

    Attributes:
        name: of the model in the repository.
        bytes: size of the repository.
    """

    name: str
    bytes: int


def write_triton(
    bundle_dir: str | Path,
    out_dir: str | Path,
    *,
    backend: str = "onnxruntime",
    name: str = "ouroboros",
    device: str = "gpu",
    instances: int = 1,
    plan: str | None = None,
    profiles: Sequence[int] = (),
) -> TritonReport:
    """Writes the Triton model repository `out_dir` from a bundle, atomically.

    Args:
        bundle_dir: a bundle; every file is verified first.
        out_dir: the model repository; what it held before is replaced as a whole.
        backend: `onnxruntime`, or `tensorrt` for a plan of the bundle.
        name: the model's name, which clients give and its directory has.
        device: `gpu` or `cpu`, where instances run.
        instances: copies of the model that serve at once, on each GPU where device is `gpu`.
        plan: the bundle's file that holds the plan (`engines/x.plan`), for `tensorrt` only.
        profiles: optimisation profiles of the plan that an instance may use, for `tensorrt` only.

    Returns:
        What was written.

    Raises:
        BundleError: `bundle_dir` is not a whole bundle.
        ExportError: an option is not allowed, the bundle holds no such plan, or the repository
            can't be written; what was there is then untouched.
    """
    _check_options(backend, name, device, instances, plan)
    bundle = open_bundle(bundle_dir)
    out = Path(out_dir)
    if out.resolve() == bundle.path.resolve():
        raise ExportError(f"{out} is the bundle itself; give --triton another directory")
    config = render_config(bundle, backend, name, device, instances, profiles)
    files = _model_files(bundle, plan)
    try:
        with publish(out) as staging:
            version = staging / name / MODEL_VERSION
            version.mkdir(parents=True)
            (staging / name / "config.pbtxt").write_text(config, encoding="utf-8")
            for source, target in files.items():
                shutil.copyfile(bundle.file(source), version / target)
            for paper in PAPERS:
                if paper in bundle.manifest.files:
                    shutil.copyfile(bundle.file(paper), staging / name / paper)
            size = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
    except OSError as error:
        raise ExportError(
            f"{out}: can't write the model repository: {error.strerror or error}; what was there "
            "is untouched"
        ) from error
    return TritonReport(name, size)


def _check_options(backend: str, name: str, device: str, instances: int, plan: str | None) -> None:
    for option, given, allowed in (("backend", backend, BACKENDS), ("device", device, DEVICES)):
        if given not in allowed:
            raise ExportError(f"{option} {given} is not Triton's; allowed: {', '.join(allowed)}")
    if not _NAME.fullmatch(name):
        raise ExportError(
            f"the model name {name!r} can't be a directory of a Triton repository; allowed: "
            "letters, digits, '_', '-' and '.', the first no '-' or '.'"
        )
    if instances < 1:
        raise ExportError(f"instances={instances} would serve nothing; allowed: 1 or more")
    if (backend == "tensorrt") != (plan is not None):
        wanted = "needs the name of a plan" if plan is None else "serves no plan"
        raise ExportError(
            f"Triton's {backend} backend {wanted}; export with --format trt and name one of "
            "engines/*.plan with backend tensorrt, or use backend onnxruntime"
        )
    if backend == "tensorrt" and device == "cpu":
        raise ExportError("a TensorRT plan runs on no CPU; allowed: device gpu")


def _model_files(bundle: Bundle, plan: str | None) -> dict[str, str]:
    """Files of the bundle that make the model, with the names Triton looks for."""
    if plan is not None:
        if plan not in bundle.manifest.files:
            held = [name for name in bundle.manifest.files if name.endswith(".plan")]
            raise ExportError(
                f"the bundle {bundle.path} holds no {plan}; it holds "
                f"{', '.join(held) or 'no plan: export with --format trt'}"
            )
        return {plan: "model.plan"}
    graph = bundle.manifest.graphs.onnx.file
    # The graph names its data files, which must lie beside it under that name.
    return {graph: "model.onnx", **{name: name for name in bundle.manifest.graphs.onnx.data}}


def render_config(
    bundle: Bundle,
    backend: str,
    name: str,
    device: str,
    instances: int,
    profiles: Sequence[int] = (),
) -> str:
    """Returns the text of config.pbtxt.

    `max_batch_size` is 0 and the batch is a dimension like the others: `depth` has none, and the
    cache's length differs from request to request, so that Triton could not join requests. A
    scalar is `dims: [ 1 ]` without a reshape: with `max_batch_size` 0 Triton refuses
    `reshape: { shape: [ ] }`, and its ONNX Runtime backend (since release 23.10) hands such a
    tensor to the model as the scalar it expects. Its TensorRT backend does not: a plan for it is
    built from a graph whose depth is `[1]` (see `export.passes.depth`).

    Args:
        bundle: whose tensors are described.
        backend: `onnxruntime` or `tensorrt`.
        name: of the model.
        device: `gpu` or `cpu`.
        instances: copies that serve at once.
        profiles: optimisation profiles, for `tensorrt`.

    Raises:
        ExportError: a tensor's type has no name in Triton.
    """
    graph, depth = bundle.manifest.graphs.onnx, bundle.manifest.depth
    lines = [f'name: "{name}"', f'backend: "{backend}"', "max_batch_size: 0"]
    lines += _list("input", [_describe(spec, backend) for spec in graph.inputs])
    lines += _list("output", [_describe(spec, backend) for spec in graph.outputs])
    group = [f"count: {instances}", f"kind: KIND_{device.upper()}"]
    if profiles:
        quoted = ", ".join(f'"{index}"' for index in profiles)
        group.append(f"profile: [ {quoted} ]")
    lines += _list("instance_group", [group])
    facts = {
        "ouroboros.depth_min": depth.min,
        "ouroboros.depth_max": depth.max,
        "ouroboros.depth_default": depth.default,
        "ouroboros.precision": bundle.manifest.precision,
        "ouroboros.pooling": bundle.manifest.model.pooling,
        "ouroboros.checkpoint_sha256": bundle.manifest.checkpoint.sha256,
    }
    for key, value in facts.items():
        lines += ["parameters {", f'  key: "{key}"']
        lines += [f'  value {{ string_value: "{value}" }}', "}"]
    return "\n".join(lines) + "\n"


def _describe(spec: TensorSpec, backend: str) -> list[str]:
    if spec.dtype not in _DATA_TYPES:
        raise ExportError(
            f"{spec.name} is {spec.dtype}, which Triton has no name for; it has "
            f"{', '.join(_DATA_TYPES)}"
        )
    dims = [size if isinstance(size, int) else -1 for size in spec.shape] or [1]
    lines = [
        f'name: "{spec.name}"',
        f"data_type: {_DATA_TYPES[spec.dtype]}",
        f"dims: [ {', '.join(map(str, dims))} ]",
    ]
    if backend == "tensorrt" and spec.name in _SHAPE_INPUTS:
        lines.append("is_shape_tensor: true")
    return lines


def _list(field: str, messages: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"{field} ["]
    for number, message in enumerate(messages):
        lines += ["  {", *(f"    {line}" for line in message)]
        lines.append("  }" if number == len(messages) - 1 else "  },")
    return [*lines, "]"]
