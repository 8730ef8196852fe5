"""`ouro bench`: measure a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Backend, Threads, parse_numbers


def bench(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by `ouro export`")],
    depth: Annotated[
        str | None, typer.Option(help="such as 1,4,8 or 1-4; default: the bundle's own")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="tokens before the measured ones; default: of 64,1024 what the model holds"
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="tokens decoded a run")] = 32,
    repeats: Annotated[int, typer.Option(help="runs of each; the median counts")] = 3,
    threads: Threads = None,
    backend: Backend = "auto",
    json: Annotated[Path | None, typer.Option(help="write the figures to this file")] = None,
) -> None:
    """Measure a bundle on this machine: decoding, prefill, overhead, share of memory speed.

    Examples:
      ouro bench bundle
      ouro bench bundle --depth 1,4,8,16 --context 64,1024 --json bench.json
    """
    from rich.console import Console

    from cli.notices import plain_warnings
    from cli.output import require_writable, write_json
    from cli.screen import new_table, print_prose, print_table
    from runtime import Engine
    from runtime.bundle.reader import read_manifest
    from runtime.measure.speed import bench_engine, check_runs, fitting_contexts

    require_writable(json, [bundle])
    console = Console()
    listed = parse_numbers(depth, "--depth") if depth else []
    asked = parse_numbers(context, "--context") if context else []
    manifest = read_manifest(bundle)  # what is wrong is told before all of the bundle is read
    depths = listed or [manifest.depth.default]
    contexts = asked or fitting_contexts(manifest, tokens)
    check_runs(manifest, depths, contexts, tokens, repeats)
    with (
        plain_warnings(),
        Engine.open(bundle, backend=backend, threads=threads) as engine,
        console.status("measuring") as status,
    ):
        report = bench_engine(
            engine, depths, contexts, tokens, repeats, threads, progress=status.update
        )
    console.print(
        f"{bundle}: batch 1, medians of {repeats} x {tokens} tokens",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = new_table()
    names = ["depth", "context", "ms/token", "tokens/s", "prefill\ntokens/s", "overhead"]
    for name in [*names, "weights\nMB/token", "of memory\nspeed"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            str(row.depth),
            str(row.context),
            f"{row.decode_ms:.2f}",
            f"{row.tokens_per_s:.1f}",
            f"{row.prefill_tokens_per_s:.0f}",
            f"{row.engine_overhead:.2%}",
            f"{row.weight_bytes / 1e6:.0f}",
            f"{row.memory_share:.0%}",
        )
    print_table(table, console)
    machine = report.machine
    cores = f"{machine['cores']} core{'' if machine['cores'] == 1 else 's'}"
    print_prose(
        f"{machine['processor']}, {cores}, {machine['system']}; memory reads "
        f"{report.read_bytes_per_s / 1e9:.1f} GB/s; Python {machine['python']}, "
        + ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
        console,
    )
    if json is not None:
        write_json(json, report.to_json())
