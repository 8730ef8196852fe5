"""`ouro train`: train a checkpoint on text."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from cli.options import parse_numbers, takes_options
from ouroboros.training.recipe import TrainOptions


@takes_options(TrainOptions, left_out=True)
def train(
    checkpoint: Annotated[Path, typer.Argument(help="the checkpoint to start from")],
    out: Annotated[Path, typer.Argument(help="where the trained checkpoint goes")],
    options: dict[str, Any],
    recipe: Annotated[
        Path | None, typer.Option(help="a .toml or .yaml file of these options; flags win")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the newest state in OUT/state")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="print the memory that the run needs, and do nothing")
    ] = False,
) -> None:
    """Train a checkpoint on text: bridge, Controller, gate, step norms; more by --train-coda.

    Writes OUT with training.png and gate.png, and OUT/state, from which --resume goes on as if
    the run had never stopped: with the same options, processes and CPU threads bit by bit. OUT is
    a new folder, a checkpoint of Ouroboros or an earlier run's.

    Examples:
      ouro train converted trained --data texts/ --eval held-out.txt
      ouro train converted trained --data corpus.jsonl --depth 8 --train-steps 1000
      ouro train converted trained --recipe recipe.yaml --resume
      ouro train converted trained --recipe recipe.yaml --plan
    """
    from ouroboros.training.recipe import make_options

    for name in ("data", "eval"):
        if name in options:
            options[name] = tuple(options[name])
    if "eval_depths" in options:
        options["eval_depths"] = tuple(parse_numbers(options["eval_depths"], "--eval-depth"))
    chosen = make_options(options, recipe)
    if plan:
        from ouroboros.training.memory import describe_plan

        typer.echo(describe_plan(checkpoint, chosen))
        return
    from rich.console import Console

    from ouroboros.training.run import train as train_model
    from ouroboros.training.state import list_steps

    try:
        report = train_model(checkpoint, out, chosen, resume=resume, console=Console())
    except KeyboardInterrupt:
        kept = (
            f"; the newest state is kept in {out / 'state'}: give the same command with --resume "
            "to go on"
            if list_steps(out / "state")
            else " before a state was saved (--save-every); give the same command to start again"
        )
        typer.echo(f"interrupted{kept}", err=True)
        raise typer.Exit(130) from None
    if not report.main:
        return
    made_of = f" ({chosen.loss_terms})" if chosen.loss_terms else ""
    speed = f", {report.tokens_per_s:,.0f} tokens/s" if report.tokens_per_s else ""
    heldout = "".join(f", {loss:.3f} at depth {d}" for d, loss in report.heldout.items())
    typer.echo(f"{report.train_steps} train steps in {report.seconds:.0f} s{speed}")
    scored = f"; held-out{heldout[1:]}" if heldout else ""
    typer.echo(f"training loss{made_of} {report.loss:.3f}{scored}")
    typer.echo(f"wrote {out}")
    typer.echo(f"next: ouro export {quote(str(out))} BUNDLE")
