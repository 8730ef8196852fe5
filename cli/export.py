"""`ouro export`: compile a checkpoint into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="made by `ouro convert` or `ouro train`")],
    out: Annotated[Path, typer.Argument(help="the bundle directory to write")],
    format: Annotated[str, typer.Option(help="onnx")] = "onnx",
    max_depth: Annotated[int, typer.Option(help="the largest depth the bundle will run")] = 16,
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, bf16 (GPUs only), int8 or int4")
    ] = "fp32",
    block_size: Annotated[
        int, typer.Option(help="weights that share a scale, of int8 and int4: 32, 64 or 128")
    ] = 32,
    symmetric: Annotated[
        bool, typer.Option("--symmetric/--asymmetric", help="int8 and int4 without zero points")
    ] = True,
    calibration: Annotated[
        Path | None,
        typer.Option(help="text on which GPTQ chooses int8 and int4 weights; default: rounding"),
    ] = None,
) -> None:
    """Compile a checkpoint into a bundle: one graph, its tokenizer and recorded cases.

    Examples:
      ouro export trained bundle
      ouro export trained bundle --format onnx --max-depth 16
      ouro export trained small --precision int4 --calibration text.jsonl
    """
    from cli.errors import require_replaceable

    require_replaceable(out, "bundle")
    from export import export_bundle

    report = export_bundle(
        checkpoint,
        out,
        max_depth=max_depth,
        precision=precision,
        format=format,
        block_size=block_size,
        symmetric=symmetric,
        calibration=calibration,
        report=typer.echo,
    )
    typer.echo(f"wrote {out}: {report.bytes / 1e6:,.0f} MB in {report.seconds:.1f} s")
    typer.echo(f'next: ouro check {out}, then ouro run {out} "prompt"')
