"""`ouro bench`: measure a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Backend, Threads, parse_numbers, takes_options
from runtime.measure.options import BenchOptions
from runtime.options import flag_of


@takes_options(BenchOptions, left_out=True)
def bench(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by `ouro export`")],
    options: dict[str, Any],
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
    from runtime.measure.speed import bench_bundle

    require_writable(json, [bundle])
    console = Console()
    for name in ("depths", "contexts"):
        if name in options:
            options[name] = tuple(parse_numbers(options[name], flag_of(BenchOptions, name)))
    chosen = BenchOptions(**options)
    with plain_warnings(), console.status("opening") as status:
        report = bench_bundle(
            bundle, chosen, backend=backend, threads=threads, report=status.update
        )
    console.print(
        f"{bundle}: batch 1, medians of {chosen.repeats} x {chosen.tokens} tokens",
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
