"""`ouro check`: compare a bundle with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Backend, Threads

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from runtime.parity.check import ParityReport


def check(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by `ouro export`")],
    backend: Backend = "auto",
    live: Annotated[
        Path | None,
        typer.Option(help="a checkpoint: compare with PyTorch on fresh random inputs instead"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="of the inputs for --live; default: another every time")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write the whole report to this file")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the errors to this image file")] = None,
    threads: Threads = None,
    every: Annotated[
        bool, typer.Option("--all", help="print every case and output, not one row a depth")
    ] = False,
) -> None:
    """Replay a bundle's recorded cases and compare with what PyTorch computed.

    Exit status 0: PASS or AMBIGUOUS (differs only where PyTorch's two best tokens tie, or PyTorch
    itself overflows in 16 bits, though not everywhere); 1: FAIL.

    Examples:
      ouro check bundle
      ouro check bundle --json parity.json --plot parity.png
      ouro check bundle --live checkpoint --seed 7
    """
    from functools import partial

    from rich import get_console

    from cli.output import require_writable, write_output
    from cli.screen import print_prose
    from runtime.parity.check import check_bundle
    from runtime.parity.picture import check_picture, draw_parity

    require_writable(json, [bundle, live, plot])
    require_writable(plot, [bundle, live, json])
    if plot is not None:
        check_picture(plot)
    console, cases = get_console(), None
    if live is not None:
        from export.live import record_live
        from runtime.backends.choose import require_backend
        from runtime.bundle.reader import read_manifest

        require_backend(read_manifest(bundle), backend, threads)
        cases = record_live(bundle, live, seed, report=partial(print_prose, console=console))
    report = check_bundle(bundle, backend, cases, threads=threads)
    print_report(report, console, every)
    if json is not None:
        write_output(json, report.write_json)
    if plot is not None:
        write_output(plot, lambda path: draw_parity(report, path))
    if report.verdict == "FAIL":
        raise typer.Exit(1)


def print_report(report: ParityReport, console: Console, every: bool) -> None:
    """Prints a table of the report, what failed, and the verdict.

    Args:
        report: from `check_bundle`.
        console: where to.
        every: one row a case and output, not one a depth.
    """
    from rich.markup import escape

    from cli.errors import visible
    from cli.screen import print_prose, print_table

    if every:
        print_table(full_table(report), console)
    else:
        print_table(depth_table(report), console)
    for problem in report.problems:
        print_prose(f"[bold red]missing:[/] {escape(visible(problem))}", console, markup=True)
    failed = [row for row in report.rows if row.verdict == "FAIL"]
    for row in failed[:10]:
        one = row.measurement
        where = escape(visible(f"{one.case}, {one.output}: {row.reason}"))
        print_prose(f"[bold red]FAIL[/] {where}", console, markup=True)
    if len(failed) > 10:
        print_prose(f"... and {len(failed) - 10} more; --all or --json shows them", console)
    unbounded = sum(row.measurement.reference_error == float("inf") for row in report.rows)
    if unbounded:
        print_prose(
            f"[yellow]no bound[/] for {unbounded} comparisons: PyTorch itself overflows there at "
            "this precision, so the engine is only asked for finite numbers",
            console,
            markup=True,
        )
    print_prose(
        f"{len(report.rows)} comparisons with PyTorch in float64, {report.ambiguous} tied tokens",
        console,
        markup=True,
    )
    if report.fast is not None:
        fast = report.fast
        print_prose(
            f"{coloured(fast.verdict)} with 8-bit activations, as it ships: mean KL "
            f"{fast.mean_kl:.1e} (bound {fast.bound:.0e}), worst {fast.worst_kl:.1e}, best token "
            f"{fast.argmax_agreement:.0%}",
            console,
            markup=True,
        )
    print_prose(
        f"{coloured(report.verdict)} the logits err by {report.worst_relative_l2:.2e} at most "
        f"(PyTorch itself by {report.reference_error:.2e}, allowed {report.allowed:.2e}), depths "
        f"{min(report.depths)}..{max(report.depths)}",
        console,
        markup=True,
    )


def depth_table(report: ParityReport) -> Table:
    """One row a depth: the worst of its cases.

    best: share of positions with PyTorch's best token; greedy: the same, of its greedy texts;
    caches: relative L2 of what a step leaves for the next call.

    Args:
        report: from `check_bundle`.
    """
    from cli.screen import new_table
    from runtime.bundle.contract import LOGITS

    table = new_table(title="engine against PyTorch, the worst case of each depth")
    names = ("depth", "cases", "max abs", "rel. L2", "KL", "best", "caches", "greedy")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for depth in sorted({row.measurement.depth for row in report.rows}):
        rows = [row for row in report.rows if row.measurement.depth == depth]
        logits = [r.measurement for r in rows if r.measurement.output == LOGITS]
        greedy = [r.measurement for r in rows if r.measurement.output == "tokens"]
        others = [r.measurement for r in rows if r.measurement.output not in (LOGITS, "tokens")]
        verdicts = {row.verdict for row in rows}
        worst = next(v for v in ("FAIL", "AMBIGUOUS", "PASS") if v in verdicts)
        table.add_row(
            str(depth),
            str(len({row.measurement.case for row in rows})),
            largest([m.difference.max_abs for m in logits]),
            largest([m.worst_relative_l2 for m in logits]),
            largest([m.kl for m in logits if m.kl is not None]),
            smallest([m.argmax_agreement for m in logits]),
            largest([m.worst_relative_l2 for m in others]),
            smallest([m.argmax_agreement for m in greedy]),
            coloured(worst),
        )
    return table


def full_table(report: ParityReport) -> Table:
    """One row a case x depth x output; wide.

    Args:
        report: from `check_bundle`.
    """
    from rich.table import Table

    from cli.screen import as_written
    from runtime.bundle.contract import NEW_PREFIX

    table = Table(title="engine against PyTorch")
    names = ("depth", "case", "output", "max abs", "mean abs", "rel. L2", "1-cosine", "KL")
    for name in (*names, "best token", "first other", "margin", "verdict"):
        table.add_column(name, no_wrap=True)
    for row in report.rows:
        one = row.measurement
        table.add_row(
            str(one.depth),
            as_written(one.case),
            as_written(one.output.removeprefix(NEW_PREFIX)),
            f"{one.difference.max_abs:.1e}",
            f"{one.difference.mean_abs:.1e}",
            f"{one.worst_relative_l2:.1e}",
            f"{1 - one.difference.cosine:.1e}",
            "" if one.kl is None else f"{one.kl:.1e}",
            smallest([one.argmax_agreement]),
            "" if row.first_divergence is None else str(row.first_divergence),
            "" if row.margin is None else f"{row.margin:.1e}",
            coloured(row.verdict),
        )
    return table


def largest(values: list[float]) -> str:
    """The largest error as text, empty where there is none."""
    return f"{max(values):.1e}" if values else ""


def smallest(shares: list[float | None]) -> str:
    """The smallest share as text, empty where there is none."""
    known = [share for share in shares if share is not None]
    if not known:
        return ""
    return "100%" if min(known) == 1 else f"{min(known):.1%}"


def coloured(verdict: str) -> str:
    """A verdict in rich markup."""
    colors = {"PASS": "green", "FAIL": "bold red", "AMBIGUOUS": "yellow"}
    return f"[{colors[verdict]}]{verdict}[/]"
