"""`ouro inspect`: what a bundle or a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def inspect(
    path: Annotated[Path, typer.Argument(help="a bundle or a checkpoint")],
    tensors: Annotated[bool, typer.Option("--tensors", help="list every tensor")] = False,
) -> None:
    """Show what a bundle or a checkpoint holds, and whether its files are whole.

    Examples:
      ouro inspect bundle
      ouro inspect checkpoint --tensors
    """
    from rich.console import Console

    from runtime.manifest import MANIFEST_NAME

    checkpoint = (path / "config.json").is_file() and not (path / MANIFEST_NAME).is_file()
    if checkpoint:
        inspect_checkpoint(path, Console(), tensors)
    else:
        inspect_bundle(path, Console(), tensors)


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

    from rich.table import Table

    from runtime.bundle import read_manifest, verify_file
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
    _print_facts(console, facts)
    table = Table("file", "bytes", "sha256", "state")
    first_problem: BundleError | None = None
    for name, spec in manifest.files.items():
        try:
            verify_file(path, name, spec)
            state = "[green]ok[/]"
        except BundleError as error:
            first_problem = first_problem or error
            state = "[bold red]damaged[/]"
        table.add_row(name, f"{spec.bytes:,}", spec.sha256[:12], state)
    console.print(table)
    if tensors:
        graph = manifest.graphs.onnx
        listing = Table("tensor", "type", "shape")
        for tensor in (*graph.inputs, *graph.outputs):
            listing.add_row(tensor.name, tensor.dtype, _escape(tensor.shape))
        console.print(listing)
    if first_problem is not None:
        raise first_problem


def inspect_checkpoint(path: Path, console: Any, tensors: bool) -> None:
    """Prints a checkpoint from its configuration and the headers of its weights; no torch.

    Args:
        path: the checkpoint's directory.
        console: a rich Console.
        tensors: list every tensor.

    Raises:
        BundleError: its configuration or weights cannot be read.
    """
    import json
    import math

    from rich.table import Table
    from safetensors import SafetensorError, safe_open

    from runtime.errors import BundleError

    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path / 'config.json'} does not hold an object")
    _print_facts(console, {"checkpoint": path, **_flat(config)})
    files = Table("file", "bytes", "tensors", "parameters")
    listing = Table("tensor", "type", "shape")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise BundleError(f"{path} holds no .safetensors file; convert it again")
    for file in weights:
        try:
            with safe_open(str(file), framework="np") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                shapes = {
                    name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()
                }
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{file} is damaged: {' '.join(str(error).split())}") from error
        count = sum(math.prod(shape) for _, shape in shapes.values())
        files.add_row(file.name, f"{file.stat().st_size:,}", str(len(shapes)), f"{count:,}")
        for name, (dtype, shape) in shapes.items():
            listing.add_row(name, str(dtype), _escape(shape))
    console.print(files)
    if tensors:
        console.print(listing)


def _print_facts(console: Any, facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and value >= 1000000 else str(value)
        table.add_row(f"[bold]{escape(name)}[/]", escape(shown))
    console.print(table)


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
