"""`ouro inspect`: what a bundle or a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from runtime.bundle.manifest import HaltingSpec


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

    from cli.errors import CommandError
    from runtime.files.destinations import BUNDLES, FILE, MISSING, NAMES, kind_of

    kind = kind_of(path)
    if kind in (*BUNDLES, MISSING, FILE):
        print_bundle(path, Console(), tensors)
        if graph:
            print_graph(path, Console())
        return
    if graph:
        raise CommandError(
            f"{path} is {NAMES.get(kind, 'empty')} and has no graph", "give a bundle"
        )
    print_checkpoint(path, Console(), tensors)


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


def print_bundle(path: Path, console: Any, tensors: bool) -> None:
    """Prints a bundle: model, depths, files with their hashes verified, the graph's tensors.

    Args:
        path: the bundle's directory.
        console: a rich Console.
        tensors: list the graph's inputs and outputs.

    Raises:
        BundleError: it is not whole; the table of its files is printed before.
    """
    import dataclasses

    from cli.screen import as_written, new_table, print_facts, print_table
    from runtime.bundle.reader import find_damage, read_manifest

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
        **_describe_halter(depth.halting),
        "tools": ", ".join(f"{name} {number}" for name, number in manifest.tools.items()),
    }
    print_facts(facts, console)
    table = new_table("file", "bytes", "sha256", "state")
    damage = find_damage(path, manifest)
    for name, spec in manifest.files.items():
        table.add_row(
            as_written(name), f"{spec.bytes:,}", spec.sha256[:12], _state(damage.get(name))
        )
    print_table(table, console)
    if tensors:
        graph = manifest.graphs.onnx
        listing = new_table("tensor", "type", "shape")
        for tensor in (*graph.inputs, *graph.outputs):
            listing.add_row(tensor.name, tensor.dtype, as_written(list(tensor.shape)))
        print_table(listing, console)
    for problem in damage.values():
        raise problem


def print_checkpoint(path: Path, console: Any, tensors: bool) -> None:
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
    from cli.screen import as_written, new_table, print_facts, print_table
    from ouroboros.inspection import inspect_checkpoint

    report = inspect_checkpoint(path)
    print_facts({"checkpoint": path, **_flat(report.config)}, console)
    files = new_table("file", "bytes", "tensors", "parameters", "state")
    listing = new_table("tensor", "type", "shape")
    for file in report.files:
        numbers = (f"{file.bytes:,}", str(len(file.tensors)), f"{file.parameters:,}")
        files.add_row(as_written(file.name), *numbers, _state(file.problem))
        for entry in file.tensors:
            listing.add_row(as_written(entry.name), entry.dtype, as_written(list(entry.shape)))
    if report.files:
        print_table(files, console)
    if tensors:
        print_table(listing, console)
    if report.problem is not None:
        raise report.problem
    if report.unread:
        console.print(
            f"{report.unread} is not installed: the configuration was not looked into",
            soft_wrap=True,
        )


def _describe_halter(halting: HaltingSpec | None) -> dict[str, str]:
    if halting is None:
        return {}
    chosen = f"{halting.kind}, at {halting.threshold:.4g}, at most {halting.max} steps"
    return {"halting": f"--depth auto: {chosen}"}


def _state(problem: Exception | None) -> str:
    return "[green]ok[/]" if problem is None else "[bold red]damaged[/]"


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
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
