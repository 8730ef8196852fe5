"""`ouro run`: generate text with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by `ouro export`")],
    prompt: Annotated[str, typer.Argument(help="the text to go on from")],
    depth: Annotated[
        int | None, typer.Option(help="recurrences; default: the bundle's own")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate at most")] = 64,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the most likely token; default: the bundle's")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="keep the k most likely tokens; 0 keeps all")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="keep the most likely tokens that reach this probability")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="makes sampling repeatable")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="text to stop before; may be given several times")
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
        pieces = engine.stream(
            prompt, depth, max_new_tokens, temperature, top_k, top_p, seed, stop, chat
        )
        for piece in pieces:
            typer.echo(piece.text, nl=False)
        typer.echo()
