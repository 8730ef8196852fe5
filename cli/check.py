"""`ouro check`: compare a bundle with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from runtime.cases import Case
    from runtime.parity import ParityReport


def check(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by `ouro export`")],
    backend: Annotated[str, typer.Option(help="auto or cpu")] = "auto",
    live: Annotated[
        Path | None,
        typer.Option(help="a checkpoint: compare with PyTorch on fresh random inputs instead"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the inputs for --live")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the whole report to this file")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the errors to this image file")] = None,
    threads: Annotated[int | None, typer.Option(help="default: every core")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="print every case, not the worst a depth and output")
    ] = False,
) -> None:
    """Replay a bundle's recorded cases and compare with what PyTorch computed.

    Exit status 0: PASS or AMBIGUOUS (differs only where PyTorch's two best tokens tie); 1: FAIL.

    Examples:
      ouro check bundle
      ouro check bundle --json parity.json --plot parity.png
      ouro check bundle --live checkpoint --seed 7
    """
    from rich.console import Console

    from runtime.parity import check_bundle

    cases = None if live is None else record_live(bundle, live, seed)
    report = check_bundle(bundle, backend, cases, threads=threads)
    if json is not None:
        report.write_json(json)
    if plot is not None:
        from runtime.plots import draw_parity

        draw_parity(report, plot)
    print_report(report, Console(), every)
    if report.verdict == "FAIL":
        raise typer.Exit(1)


def record_live(bundle: Path, checkpoint: Path, seed: int) -> list[Case]:
    """Fresh cases from PyTorch, over every depth of the bundle.

    Args:
        bundle: names the depths.
        checkpoint: the PyTorch model.
        seed: of the random inputs.
    """
    from export import record_cases
    from ouroboros.checkpoint import load_checkpoint
    from runtime.bundle import read_manifest
    from runtime.cases import make_cases

    depth = read_manifest(bundle).depth
    model, tokenizer = load_checkpoint(checkpoint)
    depths = range(depth.min, depth.max + 1)
    tensors, entries = record_cases(model, tokenizer, depths=depths, seed=seed)
    return make_cases(tensors, entries)


def print_report(report: ParityReport, console: object, every: bool) -> None:
    """Prints a table of the report and its verdict.

    Args:
        report: from `check_bundle`.
        console: a rich Console.
        every: one row a case and output, not the worst a depth and output.
    """
    from rich.console import Console
    from rich.table import Table

    if not isinstance(console, Console):
        raise TypeError("console is not a rich Console")
    order = {"FAIL": 0, "AMBIGUOUS": 1, "PASS": 2}
    rows = list(report.rows)
    if not every:
        worst: dict[tuple[int, str], object] = {}
        for row in sorted(rows, key=lambda r: (order[r.verdict], -r.measurement.worst_relative_l2)):
            worst.setdefault((row.measurement.depth, row.measurement.output), row)
        rows = [row for row in rows if any(row is kept for kept in worst.values())]
    rows.sort(key=lambda r: r.measurement.depth)
    table = Table(title=f"{report.bundle}: engine against PyTorch, bound {report.bound:.0e}")
    for name in ("depth", "case", "output"):
        table.add_column(name, justify="right" if name == "depth" else "left")
    for name in ("max abs", "mean abs", "rel. L2", "1-cosine", "KL", "argmax", "first diff."):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    colors = {"PASS": "green", "FAIL": "bold red", "AMBIGUOUS": "yellow"}
    for row in rows:
        one = row.measurement
        agreement = "" if one.argmax_agreement is None else f"{one.argmax_agreement:.1%}"
        differs = "" if row.first_divergence is None else f"{row.first_divergence}"
        if row.margin is not None:
            differs += f" ({row.margin:.1e})"
        reason = f" {row.reason}" if row.reason else ""
        table.add_row(
            str(one.depth),
            one.case,
            one.output.removeprefix("new_key_values."),
            f"{one.difference.max_abs:.1e}",
            f"{one.difference.mean_abs:.1e}",
            f"{one.worst_relative_l2:.1e}",
            f"{1 - one.difference.cosine:.1e}",
            "" if one.kl is None else f"{one.kl:.1e}",
            agreement,
            differs,
            f"[{colors[row.verdict]}]{row.verdict}[/]{reason}",
        )
    console.print(table)
    for problem in report.problems:
        console.print(f"[bold red]missing:[/] {problem}")
    shown = "" if every else " (the worst case of each depth and output; --all shows all)"
    console.print(f"{len(report.rows)} comparisons{shown}; {report.ambiguous} tied tokens")
    console.print(
        f"[{colors[report.verdict]}]{report.verdict}[/] worst relative L2 of the logits "
        f"{report.worst_relative_l2:.1e}, depths {min(report.depths)}..{max(report.depths)}"
    )
