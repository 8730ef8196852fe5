"""`ouro train`: train a checkpoint on text."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer


def train(
    checkpoint: Annotated[Path, typer.Argument(help="the checkpoint to start from")],
    out: Annotated[Path, typer.Argument(help="where the trained checkpoint goes")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="training text: .txt, .jsonl or .parquet, or a folder; repeatable"),
    ] = None,
    eval: Annotated[
        list[Path] | None,
        typer.Option(help="held-out text, scored while training, never trained on; repeatable"),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="a .toml or .yaml file of these options; flags win")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the newest state in OUT/state")
    ] = False,
    depth: Annotated[
        str | None, typer.Option(help="one depth, or a range to draw from (default 1-16)")
    ] = None,
    train_steps: Annotated[int | None, typer.Option(help="optimizer steps (default 300)")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="windows a micro-batch (default 4)")
    ] = None,
    grad_accum: Annotated[
        int | None, typer.Option(help="micro-batches a train step (default 1)")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(help="tokens a window (default 256)")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="the highest one (default 0.001)")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help="train steps in which it rises (default 10)")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="then cosine, linear or constant (default cosine)")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's (default 0)")] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="clip gradients; 0 does not (default 1)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of data order and depths (default 0)")] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="train steps; 0: at start and end only (default 50)")
    ] = None,
    eval_depth: Annotated[
        str | None, typer.Option(help="depths to score, like 1,8,16 (default from --depth)")
    ] = None,
    eval_windows: Annotated[
        int | None, typer.Option(help="windows a held-out file (default 4)")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="train steps between saved states (default 50)")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, or bf16 with float32 weights (default fp32)")
    ] = None,
    train_coda: Annotated[
        str | None,
        typer.Option(help="of the last layers train: frozen, norms or full (default frozen)"),
    ] = None,
) -> None:
    """Train a checkpoint on text: Controller, gate and step norms; with --train-coda more.

    Writes OUT with training.png and gate.png, and OUT/state, from which --resume goes on as if
    the run had never stopped: with the same options, processes and CPU threads bit by bit. OUT is
    a new folder, a checkpoint of Ouroboros or an earlier run's.

    Examples:
      ouro train converted trained --data texts/ --eval held-out.txt
      ouro train converted trained --data corpus.jsonl --depth 8 --train-steps 1000
      ouro train converted trained --recipe recipe.yaml --resume
    """
    from cli.bench import parse_numbers
    from ouroboros.training.recipe import make_options

    flags = {
        "data": tuple(data) if data else None,
        "eval": tuple(eval) if eval else None,
        "depth": depth,
        "train_steps": train_steps,
        "batch_size": batch_size,
        "grad_accum": grad_accum,
        "seq_len": seq_len,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "scheduler": scheduler,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "seed": seed,
        "eval_every": eval_every,
        "eval_depths": tuple(parse_numbers(eval_depth, "--eval-depth")) if eval_depth else None,
        "eval_windows": eval_windows,
        "save_every": save_every,
        "precision": precision,
        "train_coda": train_coda,
    }
    options = make_options(flags, recipe)
    from rich.console import Console

    from ouroboros.training.run import train as train_model

    try:
        report = train_model(checkpoint, out, options, resume=resume, console=Console())
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted; the newest state is kept in {out / 'state'}: give the same command "
            "with --resume to go on",
            err=True,
        )
        raise typer.Exit(130) from None
    speed = f", {report.tokens_per_s:,.0f} tokens/s" if report.tokens_per_s else ""
    heldout = "".join(f", {loss:.3f} at depth {d}" for d, loss in report.heldout.items())
    typer.echo(f"{report.train_steps} train steps in {report.seconds:.0f} s{speed}")
    typer.echo(f"training loss {report.loss:.3f}{'; held-out' if heldout else ''}{heldout[1:]}")
    typer.echo(f"wrote {out}")
    typer.echo(f"next: ouro export {quote(str(out))} BUNDLE")
