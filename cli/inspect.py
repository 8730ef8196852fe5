"""`ouro inspect`: what a bundle or a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def inspect(
    path: Annotated[Path, typer.Argument(help="a bundle or a checkpoint")],
    tensors: Annotated[bool, typer.Option("--tensors", help="list every tensor")] = False,
    graph: Annotated[
        bool, typer.Option("--graph", help="draw a bundle's graph as a tree of its parts")
    ] = False,
) -> None:
    """Show what a bundle or a checkpoint holds, and whether its files are whole.

    Examples:
      ouro inspect bundle
      ouro inspect checkpoint --tensors
      ouro inspect bundle --graph
    """
    from rich.console import Console

    from runtime.bundle.manifest import MANIFEST_NAME

    checkpoint = (path / "config.json").is_file() and not (path / MANIFEST_NAME).is_file()
    if checkpoint:
        inspect_checkpoint(path, Console(), tensors)
    else:
        inspect_bundle(path, Console(), tensors)
        if graph:
            print_graph(path, Console())


def print_graph(path: Path, console: Any) -> None:
    """Prints the graph of a bundle as a tree: prelude, the loop's body, coda.

    Args:
        path: the bundle's directory.
        console: a rich Console.
    """
    from export.graph.view import describe_graph
    from runtime.bundle.reader import open_bundle

    bundle = open_bundle(path)
    for line in describe_graph(bundle.file(bundle.manifest.graphs.onnx.file)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def inspect_bundle(path: Path, console: Any, tensors: bool) -> None:
    """Prints a bundle: model, depths, files with their hashes verified, the graph's tensors.

    Args:
        path: the bundle's directory.
        console: a rich Console.
        tensors: list the graph's inputs and outputs.

    Raises:
        BundleError: it is not whole; the table of its files is printed before.
    """
    import dataclasses

    from cli.screen import new_table, print_facts, print_table
    from runtime.bundle.reader import read_manifest, verify_file
    from runtime.errors import BundleError

    manifest = read_manifest(path)
    depth = manifest.depth
    trained = ", ".join(map(str, depth.trained)) or "none: this model was never trained"
    facts = {
        "bundle": f"{path}, format version {manifest.format_version}",
        "checkpoint": f"{manifest.checkpoint.name} {manifest.checkpoint.sha256[:12]}",
        "precision": manifest.precision,
        "depth": f"{depth.min}..{depth.max}, default {depth.default}",
        "trained depths": trained,
        **dataclasses.asdict(manifest.model),
        "tools": ", ".join(f"{name} {number}" for name, number in manifest.tools.items()),
    }
    print_facts(facts, console)
    table = new_table("file", "bytes", "sha256", "state")
    first_problem: BundleError | None = None
    for name, spec in manifest.files.items():
        try:
            verify_file(path, name, spec)
            state = "[green]ok[/]"
        except BundleError as error:
            first_problem = first_problem or error
            state = "[bold red]damaged[/]"
        table.add_row(name, f"{spec.bytes:,}", spec.sha256[:12], state)
    print_table(table, console)
    if tensors:
        graph = manifest.graphs.onnx
        listing = new_table("tensor", "type", "shape")
        for tensor in (*graph.inputs, *graph.outputs):
            listing.add_row(tensor.name, tensor.dtype, _escape(tensor.shape))
        print_table(listing, console)
    if first_problem is not None:
        raise first_problem


def inspect_checkpoint(path: Path, console: Any, tensors: bool) -> None:
    """Prints a checkpoint: its configuration, and its weights with every value looked at.

    Without the `train` extra, what needs transformers is left out: whether this version knows
    every key of the configuration, and whether the weights are those that it asks for.

    Args:
        path: the checkpoint's directory.
        console: a rich Console.
        tensors: list every tensor.

    Raises:
        CheckpointError: it is an original model, or not whole; the tables are printed before.
        ConfigError: its configuration holds what this version does not know.
    """
    import math

    from cli.screen import new_table, print_facts, print_table
    from cli.weights import TensorEntry, read_header, require_finite
    from ouroboros.errors import CheckpointError

    config = read_checkpoint_config(path)
    print_facts({"checkpoint": path, **_flat(config)}, console)
    files = new_table("file", "bytes", "tensors", "parameters", "state")
    listing = new_table("tensor", "type", "shape")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(f"{path} holds no .safetensors file", "convert it again")
    shapes: dict[str, tuple[int, ...]] = {}
    first_problem: CheckpointError | None = None
    for file in weights:
        entries: dict[str, TensorEntry] = {}
        state = "[green]ok[/]"
        try:
            entries = read_header(file)
            require_finite(file, entries)
        except CheckpointError as error:
            first_problem = first_problem or error
            state = "[bold red]damaged[/]"
        count = sum(math.prod(entry.shape) for entry in entries.values())
        size = f"{file.stat().st_size:,}"
        files.add_row(file.name, size, str(len(entries)), f"{count:,}", state)
        for name, entry in entries.items():
            listing.add_row(name, entry.dtype, _escape(entry.shape))
            shapes[name] = entry.shape
    print_table(files, console)
    if tensors:
        print_table(listing, console)
    if first_problem is not None:
        raise first_problem
    require_matching(path, shapes, console)


def read_checkpoint_config(path: Path) -> dict[str, Any]:
    """The plain JSON of a checkpoint's config.json.

    Args:
        path: the checkpoint's directory.

    Raises:
        CheckpointError: it can't be read, or is another model's.
    """
    import json

    from ouroboros.errors import CheckpointError
    from runtime.files.destinations import DELTA, kind_of

    if kind_of(path) == DELTA:
        raise CheckpointError(
            f"{path} is a delta, which lacks what its original model holds",
            f"make the whole checkpoint: `ouro restore {path} OUT --source SOURCE`",
        )
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file} can't be read: {reason}", "copy it again") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or kind != "ouroboros":
        raise CheckpointError(
            f"{path} is an original model ({kind}), not a checkpoint of Ouroboros",
            f"convert it first: ouro convert {path} OUT",
        )
    return config


def require_matching(path: Path, shapes: dict[str, tuple[int, ...]], console: Any) -> None:
    """Refuses a checkpoint whose configuration and weights do not belong together.

    Args:
        path: the checkpoint's directory.
        shapes: of its tensors.
        console: a rich Console, told where this can't be looked at.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
        ConfigError: the configuration holds what this version does not know.
    """
    try:
        import torch

        from ouroboros.checkpoint import read_config, weight_files
        from ouroboros.model.modeling import OuroborosForCausalLM
    except ModuleNotFoundError as error:
        console.print(
            f"{error.name} is not installed: the configuration was not looked into", soft_wrap=True
        )
        return
    from ouroboros.errors import CheckpointError

    config = read_config(path)
    weight_files(path)
    with torch.device("meta"):
        model = OuroborosForCausalLM(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings and "lm_head.weight" not in shapes:
        wanted.pop("lm_head.weight", None)
    for name in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(name) != shapes.get(name):
            raise CheckpointError(
                f"{path}: the tensor {name} has the shape {shapes.get(name)}, config.json asks for "
                f"{wanted.get(name)}",
                "config.json and the weights are not of one checkpoint",
            )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The keys worth a line: the plain ones, and the base model's dimensions."""
    facts: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            for inner, part in value.items():
                if isinstance(part, str | int | float) and inner not in ("license_text",):
                    facts[f"{name}.{inner}"] = part
        else:
            facts[name] = value
    return facts


def _escape(shape: Any) -> str:
    from rich.markup import escape

    return escape(str(list(shape)))
