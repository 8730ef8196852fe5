"""`ouro run`: generate text with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.options import Backend, Threads, takes_options
from runtime.decode.options import Options


@takes_options(Options, apart=("logprobs",))
def run(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by `ouro export`")],
    prompt: Annotated[str, typer.Argument(help="the text to go on from")],
    options: Options,
    depth: Annotated[
        str | None,
        typer.Option(help="recurrences, or auto: chosen on the prompt; default: the bundle's own"),
    ] = None,
    halt_threshold: Annotated[
        float | None,
        typer.Option(
            help="of --depth auto, at most 1: the lower, the fewer steps; default: the bundle's"
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="apply the chat template")] = False,
    threads: Threads = None,
    backend: Backend = "auto",
) -> None:
    """Generate text with a bundle; it appears as it is made.

    Examples:
      ouro run bundle "The sea is" --depth 8
      ouro run bundle "The sea is" --depth auto
      ouro run bundle "Why is the sky blue?" --chat --max-new-tokens 200
      ouro run bundle "Once" --temperature 0.8 --top-p 0.95 --seed 1
    """
    from cli.notices import plain_warnings
    from runtime import Engine
    from runtime.bundle.reader import read_manifest
    from runtime.decode.options import check_options
    from runtime.decode.request import choose_depths

    chosen = parse_depth(depth)
    manifest = read_manifest(bundle)  # what is wrong is told before all of the bundle is read
    choose_depths(chosen, halt_threshold, 1, manifest.depth)
    check_options(options, manifest.sampling)
    with plain_warnings(), Engine.open(bundle, backend=backend, threads=threads) as engine:
        session = engine.session(chosen, halt_threshold)
        for piece in session.stream(prompt, options, chat=chat):
            typer.echo(piece.text, nl=False)
        typer.echo()
        if chosen == "auto":
            typer.echo(f"depth {session.depth}, chosen on the prompt", err=True)


def parse_depth(text: str | None) -> int | Literal["auto"] | None:
    """A depth as `--depth` takes it.

    Raises:
        CommandError: neither a number nor `auto`.
    """
    from cli.errors import CommandError

    if text is None or text == "auto":
        return None if text is None else "auto"
    try:
        return int(text)
    except ValueError:
        raise CommandError(f"--depth {text!r:.60} is no depth", "give a number, or auto") from None
