"""`ouro sample`: draw text from an original model."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from cli.options import takes_options
from ouroboros.text.sample_options import SampleOptions


@takes_options(SampleOptions)
def sample(
    source: Annotated[str, typer.Argument(help="hub id, local directory or .gguf file")],
    out: Annotated[Path, typer.Argument(help="the .jsonl file to write")],
    options: SampleOptions,
) -> None:
    """Draw training text from an original model: its own continuations, as wide as it is.

    Each line of OUT is {"text": ...}, as `ouro train --data` reads it. Until all is drawn, the
    lines stand in OUT.part, which stays where the drawing is stopped.

    Examples:
      ouro sample HuggingFaceTB/SmolLM2-135M drawn.jsonl --tokens 1000000
      ouro sample smollm2.gguf drawn.jsonl --openings texts/ --opening 16
    """
    from ouroboros.text.sampling import sample_text

    drawn = sample_text(source, out, options, typer.echo)
    typer.echo(f"wrote {out}: {drawn:,} tokens")
    typer.echo(f"next: ouro train CHECKPOINT OUT --data {quote(str(out))}")
