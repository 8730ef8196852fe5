"""Puts a new checkpoint's weights into a plan that an earlier export built with `--refit`.

Only what is the same but for floating-point weights can be refitted. The graphs of both bundles are
compared, for TensorRT would take the weights of another graph too and compute something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import ExportError
from export.options import TrtOptions
from export.tensorrt.builder import GraphFacts
from export.tensorrt.options import check_options, make_profiles
from export.tensorrt.plan_files import hash_graph_files, make_plan, read_graph
from runtime.backends.machine import check_plan_fits, find_machine
from runtime.backends.trt_flavours import FLAVOURS, Installed
from runtime.bundle.contract import ELEMENT_TYPES, TensorSpec
from runtime.bundle.plans import PlanSpec, ProfileSpec
from runtime.bundle.reader import open_bundle, read_manifest
from runtime.errors import EngineError

if TYPE_CHECKING:
    import onnx


def refit_plans(
    onnx_file: Path,
    out_dir: Path,
    source: Path,
    options: TrtOptions,
    facts: GraphFacts,
    report: Callable[[str], None] | None = None,
    hashes: Mapping[str, str] | None = None,
) -> tuple[list[PlanSpec], dict[str, str]]:
    """Writes the plan of another bundle into `out_dir`, with the weights of `onnx_file`.

    Arguments and result are those of `export.tensorrt.builder.build_plans`, but for one.

    Args:
        onnx_file: the graph with the new weights.
        out_dir: the folder of the plans.
        source: the bundle that holds the plan.
        options: what its plan must be built for.
        facts: of the new model.
        report: called with lines of progress.
        hashes: the sha256 of the graph's files by name, as far as they are known.

    Raises:
        ExportError: the plan can't be refitted, see `find_refittable` and `changed_weights`, or
            TensorRT refuses the weights.
        BundleError: `source` is not a whole bundle.
        OSError: a file can't be written.
    """
    spec, installed = find_refittable(source, options, facts)
    if report is not None:
        report(f"refitting {spec.file} of {source} with {installed.flavour.title} {spec.version}")
    bundle = open_bundle(source)
    changed = changed_weights(bundle.file(bundle.manifest.graphs.onnx.file), onnx_file)
    graph, files = read_graph(onnx_file)
    name = Path(spec.file).name
    request = {
        "module": installed.module,
        "refit_from": str(bundle.file(spec.file).absolute()),
        "sha256": bundle.manifest.files[spec.file].sha256,
        "changed": changed,
    }
    done = make_plan(graph, out_dir / name, installed.flavour.title, request)
    digest = hash_graph_files(files, hashes)
    made = replace(spec, file=f"{out_dir.name}/{name}", graph_sha256=digest)
    return [made], {made.file: done["sha256"]}


def find_refittable(
    source: Path, options: TrtOptions, facts: GraphFacts
) -> tuple[PlanSpec, Installed]:
    """The plan of a bundle, if it can take the weights of another checkpoint here.

    Only the manifest is read, so that this can be asked before the new graph is there.

    Args:
        source: the bundle.
        options: the user's.
        facts: of the new model.

    Returns:
        Its entry in the manifest, and the TensorRT to refit it with.

    Raises:
        ExportError: there is no plan, it was built without `--refit` or for something else than
            what is asked for, or it does not fit this machine.
        BundleError: `source` is no bundle.
    """
    max_seq = check_options(options, facts.max_positions, facts.whole_prompt)
    manifest = read_manifest(source)
    if not manifest.plans:
        raise ExportError(f"refit_from={source} holds no plan", "export it with --format trt")
    spec = manifest.plans[0]  # an export writes one
    if not spec.refittable:
        raise ExportError(
            f"refit_from={source}: {spec.file} was built without refit",
            "export it with --refit",
        )
    machine = find_machine()
    if machine.gpu is None:
        raise ExportError(
            f"refit_from={source}: weights are replaced on the GPU that {spec.file} is for, and "
            "CUDA shows none here",
            "run this on that machine",
        )
    try:
        installed = check_plan_fits(spec, machine)
    except EngineError as error:
        raise ExportError(f"refit_from={source}: {error.problem}", error.cure) from error
    for option, held, asked in (
        ("precision", manifest.precision, facts.precision),
        ("max_depth", manifest.depth.max, facts.max_depth),
        (
            "flavour",
            FLAVOURS[spec.flavour].option,
            "" if options.flavour == "auto" else options.flavour,
        ),
        ("compute_capabilities", spec.compute_capabilities, options.compute_capabilities),
    ):
        if asked and asked != held:
            raise ExportError(
                f"refit_from={source}: its plan is of {option}={_shown(held)}, asked for is "
                f"{_shown(asked)}",
                "give the plan's, or build one without --refit-from",
            )
    inputs = manifest.graphs.onnx.inputs
    _check_profiles(source, spec, _profiles(inputs, options, facts, max_seq))
    return spec, installed


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _profiles(
    inputs: Sequence[TensorSpec], options: TrtOptions, facts: GraphFacts, max_seq: int
) -> tuple[ProfileSpec, ...]:
    depths = (facts.max_depth, facts.default_depth)
    return make_profiles(inputs, options, max_seq, *depths, facts.whole_prompt)


def _check_profiles(source: Path, spec: PlanSpec, asked: Sequence[ProfileSpec]) -> None:
    """Refuses other limits than asked for; what is served best may differ."""
    held = {profile.name: profile for profile in spec.profiles}
    for profile in asked:
        old = {one.name: one for one in held[profile.name].shapes} if profile.name in held else {}
        for one in profile.shapes:
            if one.name not in old or (old[one.name].min, old[one.name].max) != (one.min, one.max):
                most = list(old[one.name].max) if one.name in old else "none"
                raise ExportError(
                    f"refit_from={source}: its plan's profile {profile.name} takes {one.name} up "
                    f"to {most}, asked for is {list(one.max)}",
                    "give the --max-batch and --max-seq that it was built with",
                )


def changed_weights(old: Path, new: Path) -> list[str]:
    """Names of the floating-point weights in which two graphs differ.

    Args:
        old: an ONNX file, its data files beside it.
        new: another.

    Raises:
        ExportError: they differ in more than that.
    """
    import onnx

    floats = {one.onnx_number for one in ELEMENT_TYPES.values() if one.floating}
    models = [onnx.load(file, load_external_data=False) for file in (old, new)]
    held, given = (_take_weights(model.graph) for model in models)
    kinds = [{n: (w.data_type, *w.dims) for n, w in one.items()} for one in (held, given)]
    graphs = [model.graph.SerializeToString(deterministic=True) for model in models]
    if graphs[0] != graphs[1] or kinds[0] != kinds[1]:
        raise ExportError(
            f"{old} and the new checkpoint's graph differ in more than weights (layers, rank, "
            "pooling, precision or opset)",
            "build the plan without --refit-from",
        )
    names = [
        name
        for name in held
        if _content(held[name], old.parent) != _content(given[name], new.parent)
    ]
    fixed = next((name for name in names if held[name].data_type not in floats), None)
    if fixed is not None:
        kind = onnx.TensorProto.DataType.Name(held[fixed].data_type).lower()
        raise ExportError(
            f"the weight {fixed} has changed and is {kind}, of which a refit replaces none",
            "build the plan without --refit-from",
        )
    return names


def _take_weights(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The initializers of a graph and of its loops' bodies, which it has no longer afterwards."""
    weights = {one.name: one for one in graph.initializer}
    del graph.initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            weights |= _take_weights(attribute.g)
    return weights


def _content(weight: onnx.TensorProto, folder: Path) -> bytes:
    from onnx import TensorProto, numpy_helper

    loaded = TensorProto()  # a copy: reading leaves the content in it
    loaded.CopyFrom(weight)
    return numpy_helper.to_array(loaded, str(folder)).tobytes()
