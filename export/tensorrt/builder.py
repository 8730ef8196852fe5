"""Builds TensorRT plans from an ONNX graph, in a child process, and describes them.

The graph's Loop stays a loop of TensorRT's with the Controller inside, `depth` its trip count; the
network is strongly typed, so that the plan computes in the types that the graph names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ExportError
from export.options import TrtOptions
from export.tensorrt.options import check_options, make_profiles
from export.tensorrt.plan_files import hash_graph_files, make_plan, read_graph
from export.tensorrt.target import Target, choose_target
from runtime.bundle.contract import DEPTH, INPUT_IDS, LOGIT_INDEX, TensorSpec
from runtime.bundle.plans import PlanSpec, ProfileSpec

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


def build_plans(
    onnx_file: Path,
    out_dir: Path,
    options: TrtOptions,
    facts: GraphFacts,
    report: Callable[[str], None] | None = None,
    hashes: Mapping[str, str] | None = None,
) -> tuple[list[PlanSpec], dict[str, str]]:
    """Builds one plan for all compute capabilities asked for, and writes it into `out_dir`.

    Nothing is left behind where this fails or is interrupted.

    Args:
        onnx_file: a bundle's graph, its data files beside it.
        out_dir: the folder of the plans; made where it is missing. `PlanSpec.file` starts with
            its name.
        options: the user's.
        facts: of the model.
        report: called with a line of progress now and then.
        hashes: the sha256 of the graph's files by name, as far as they are known.

    Returns:
        One entry a plan, and the sha256 of each by its `PlanSpec.file`.

    Raises:
        ExportError: an option is not allowed, no TensorRT is installed, the graph has no input
            `depth`, or TensorRT can't build it.
        OSError: a file can't be written.
    """
    say = report or (lambda line: None)
    max_seq = check_options(options, facts.max_positions, facts.whole_prompt)
    target = choose_target(options)
    flavour = target.installed.flavour
    graph, files = read_graph(onnx_file)
    inputs = _inputs(graph)
    names = {one.name for one in inputs}
    if missing := [one for one in (INPUT_IDS, DEPTH, LOGIT_INDEX) if one not in names]:
        raise ExportError(f"the graph has no input {missing[0]}", "export the checkpoint again")
    profiles = make_profiles(
        inputs, options, max_seq, facts.max_depth, facts.default_depth, facts.whole_prompt
    )
    gpus = "-".join("sm" + one.replace(".", "") for one in target.capabilities)
    name = f"{flavour.option}-{gpus}.plan"
    say(f"building {name} with {flavour.title} {target.installed.version}")
    request = {
        "module": target.installed.module,
        "capabilities": target.capabilities,
        "profiles": [asdict(profile) for profile in profiles],
        "refit": options.refit,
        "workspace_mb": options.workspace_mb,
        "timing_cache": _absolute(options.timing_cache),
    }
    done = make_plan(graph, out_dir / name, flavour.title, request, options.timing_cache)
    spec = _describe(
        f"{out_dir.name}/{name}",
        target,
        profiles,
        precision=facts.precision,
        digest=hash_graph_files(files, hashes),
        done=done,
    )
    return [spec], {spec.file: done["sha256"]}


def _absolute(file: Path | None) -> str | None:
    return None if file is None else str(file.absolute())


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
    target: Target,
    profiles: tuple[ProfileSpec, ...],
    *,
    precision: str,
    digest: str,
    done: dict[str, Any],
) -> PlanSpec:
    installed, gpu = target.installed, target.gpu
    return PlanSpec(
        file=file,
        flavour=installed.flavour.name,
        version=installed.version or done["version"],
        cuda=installed.cuda or (gpu.cuda if gpu is not None else ""),
        compute_capabilities=target.capabilities,
        precision=precision,
        refittable=done["refittable"] > 0,
        graph_sha256=digest,
        profiles=profiles,
        max_new_tokens=_most(profiles, INPUT_IDS),
        max_logits=_most(profiles, LOGIT_INDEX),
    )


def _most(profiles: Sequence[ProfileSpec], name: str) -> int:
    """The longest row that an input may have, in any profile: its dimension 1."""
    shapes = (one for profile in profiles for one in profile.shapes if one.name == name)
    return max(one.max[1] for one in shapes)
