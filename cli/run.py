"""`ouro run`: generate text with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import takes_options
from runtime.decode.options import Options


@takes_options(Options, apart=("logprobs",))
def run(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by `ouro export`")],
    prompt: Annotated[str, typer.Argument(help="the text to go on from")],
    options: Options,
    depth: Annotated[
        int | None, typer.Option(help="recurrences; default: the bundle's own")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="apply the chat template")] = False,
    threads: Annotated[int | None, typer.Option(help="default: every core")] = None,
    backend: Annotated[str, typer.Option(help="auto, cpu, cuda or trt")] = "auto",
) -> None:
    """Generate text with a bundle; it appears as it is made.

    Examples:
      ouro run bundle "The sea is" --depth 8
      ouro run bundle "Why is the sky blue?" --chat --max-new-tokens 200
      ouro run bundle "Once" --temperature 0.8 --top-p 0.95 --seed 1
    """
    from cli.notices import plain_warnings
    from runtime import Engine

    with plain_warnings(), Engine.open(bundle, backend=backend, threads=threads) as engine:
        for piece in engine.stream(prompt, depth, options, chat=chat):
            typer.echo(piece.text, nl=False)
        typer.echo()
