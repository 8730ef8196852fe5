"""`ouro convert`: make a pretrained model recursive."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer


def convert(
    source: Annotated[
        str, typer.Argument(help="a hub id, a local model directory or a .gguf file")
    ],
    out: Annotated[Path, typer.Argument(help="the checkpoint directory to write")],
    prelude: Annotated[int, typer.Option(help="first layers to keep")] = 8,
    coda: Annotated[int, typer.Option(help="last layers to keep")] = 8,
    recurrent: Annotated[
        str, typer.Option(help="the layer to loop, counted from 0; auto measures which is best")
    ] = "auto",
    depth: Annotated[
        int, typer.Option(help="the default depth; auto and matched measure at it")
    ] = 8,
    max_depth: Annotated[int, typer.Option(help="the largest depth that will ever be used")] = 64,
    rank: Annotated[int, typer.Option(help="rank of the low-rank bases")] = 32,
    alpha: Annotated[float, typer.Option(help="LoRA alpha")] = 16.0,
    pooling: Annotated[
        str, typer.Option(help="what the Controller sees: causal, mean or token")
    ] = "causal",
    norm_init: Annotated[
        str, typer.Option(help="start of the per-step norms: matched or ones")
    ] = "matched",
    bases: Annotated[
        str, typer.Option(help="one SVD of the mean residual, or one a step: mean or per_step")
    ] = "mean",
    modulation: Annotated[
        str, typer.Option(help="controller, or static for the paper's ablation")
    ] = "controller",
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="the paper's ablation has no gate")
    ] = True,
    calibration: Annotated[
        Path | None, typer.Option(help="text to measure on; default: one that comes with ouro")
    ] = None,
) -> None:
    """Make a pretrained model recursive and write it as a checkpoint that loads alone.

    Examples:
      ouro convert Qwen/Qwen2.5-3B converted --recurrent 18
      ouro convert model.Q4_1.gguf converted
      ouro convert ./SmolLM2-135M converted --prelude 6 --coda 6 --recurrent auto
    """
    from cli.screen import working
    from ouroboros.conversion.convert import convert as convert_model

    with working("loading") as say:
        report = convert_model(
            source,
            out,
            prelude=prelude,
            coda=coda,
            recurrent=recurrent,
            rank=rank,
            alpha=alpha,
            max_depth=max_depth,
            pooling=pooling,
            norm_init=norm_init,
            bases=bases,
            depth=depth,
            modulation=modulation,
            gate=gate,
            calibration=calibration,
            report=say,
        )
    typer.echo(report.text)
    typer.echo(f"wrote {out}")
    typer.echo(f"next: ouro train {quote(str(out))} OUT --data FILE --eval FILE")
