"""`ouro convert`: make a pretrained model recursive."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from cli.options import takes_options
from ouroboros.conversion.options import ConvertOptions


@takes_options(ConvertOptions)
def convert(
    source: Annotated[
        str, typer.Argument(help="a hub id, a local model directory or a .gguf file")
    ],
    out: Annotated[Path, typer.Argument(help="the checkpoint directory to write")],
    options: ConvertOptions,
) -> None:
    """Make a pretrained model recursive and write it as a checkpoint that loads alone.

    Examples:
      ouro convert Qwen/Qwen2.5-3B converted --recurrent 18
      ouro convert Qwen/Qwen2.5-3B converted --recurrent 18-21
      ouro convert model.Q4_1.gguf converted
      ouro convert ./SmolLM2-135M converted --prelude 6 --coda 6 --recurrent auto
      ouro convert ./SmolLM2-135M converted --recurrent auto:4 --split auto
    """
    from cli.screen import working
    from ouroboros.conversion.convert import convert as convert_model

    with working("loading") as say:
        report = convert_model(source, out, options, report=say)
    typer.echo(report.text)
    typer.echo(f"wrote {out}")
    typer.echo(f"next: ouro train {quote(str(out))} OUT --data FILE --eval FILE")
