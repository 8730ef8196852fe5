"""`ouro halter`: give a checkpoint a halter, so that it can choose its depth."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from cli.options import takes_options
from ouroboros.halting.options import HalterOptions


@takes_options(HalterOptions, left_out=True)
def halter(
    checkpoint: Annotated[Path, typer.Argument(help="the checkpoint, trained already")],
    out: Annotated[Path, typer.Argument(help="where the one with a halter goes")],
    options: dict[str, Any],
) -> None:
    """Give a checkpoint a halter: it then chooses the depth of a text on its prompt.

    The model itself stays as it is. It is observed on text at its depths, the halter learns when a
    step more is not worth its price, and the threshold is chosen on text held aside.

    Examples:
      ouro halter trained adaptive --data texts/
      ouro halter trained adaptive --data texts/ --price 0.01
      ouro halter trained adaptive --data texts/ --kind distance
    """
    from functools import partial

    from cli.screen import counting_bar
    from ouroboros.halting.run import make_halter

    if "data" in options:
        options["data"] = tuple(options["data"])
    chosen = HalterOptions(**options)
    found = make_halter(
        checkpoint,
        out,
        chosen,
        report=lambda line: typer.echo(line, err=True),
        bar=partial(counting_bar, "observing windows"),
    )
    best = found.best_fixed(chosen.price)
    typer.echo(
        f"threshold {found.choice.threshold:.4g}: mean depth {found.choice.depth:.2f}, "
        f"loss {found.choice.loss:.4f} on {found.prompts} prompts held aside"
    )
    typer.echo(f"best fixed depth {best}: loss {found.fixed[best - 1]:.4f}")
    typer.echo(f"wrote {out}")
    typer.echo(f"next: ouro export {quote(str(out))} BUNDLE, and ouro run BUNDLE --depth auto")
