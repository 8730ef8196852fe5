"""`ouro delta` and `ouro restore`: a checkpoint without what its original model holds."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from cli.options import takes_options
from ouroboros.delta.options import DeltaOptions


@takes_options(DeltaOptions)
def delta(
    checkpoint: Annotated[Path, typer.Argument(help="made by `ouro convert` or `ouro train`")],
    out: Annotated[Path, typer.Argument(help="the directory to write")],
    options: DeltaOptions,
    source: Annotated[
        str,
        typer.Option(help="the original model: a hub id, a local model directory or a .gguf file"),
    ],
) -> None:
    """Write all of a checkpoint that its original model does not hold bit for bit.

    What stands in OUT is enough, with the original model at hand, for `ouro restore` to write the
    checkpoint again.

    Examples:
      ouro delta trained trained-delta --source Qwen/Qwen2.5-3B
      ouro delta trained trained-delta --source model.Q4_1.gguf --dtype bfloat16
    """
    from cli.screen import working
    from ouroboros.delta.save import save_delta

    with working("opening") as say:
        report = save_delta(checkpoint, out, source, options, report=say)
    if report.left_out:
        typer.echo(f"left out, as no part of a checkpoint: {', '.join(report.left_out)}")
    every = len(report.tensors) + len(report.copied) + len(report.updated)
    adapters = f" and the adapters of {len(report.updated)}" if report.updated else ""
    typer.echo(
        f"{len(report.tensors)} of {every} tensors{adapters}, {report.numbers:,} numbers; the "
        f"other {len(report.copied)} are the source's"
    )
    typer.echo(
        f"wrote {out}: {report.bytes / 1e6:,.1f} MB in {report.files} files, in place of "
        f"{report.checkpoint_bytes / 1e6:,.1f} MB of weights"
    )
    typer.echo(f"next: ouro restore {quote(str(out))} CHECKPOINT --source {quote(source)}")


def restore(
    delta: Annotated[Path, typer.Argument(help="made by `ouro delta`")],
    out: Annotated[Path, typer.Argument(help="the checkpoint directory to write")],
    source: Annotated[
        str,
        typer.Option(
            help="the original model it stands on: a hub id, a local model directory or a .gguf "
            "file; its files must have the hashes that the delta names"
        ),
    ],
) -> None:
    """Write the checkpoint that a delta was made from.

    Examples:
      ouro restore trained-delta trained --source Qwen/Qwen2.5-3B
      ouro restore trained-delta trained --source model.Q4_1.gguf
    """
    from cli.screen import working
    from ouroboros.delta.restore import restore_delta

    with working("opening") as say:
        report = restore_delta(delta, out, source, report=say)
    kept = "the same to the bit as" if report.identical else "rounded from"
    typer.echo(f"{report.bytes / 1e6:,.1f} MB of weights, {kept} the checkpoint it was made from")
    typer.echo(f"wrote {out}")
    typer.echo(f"next: ouro export {quote(str(out))} BUNDLE")
