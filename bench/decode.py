"""Decoding speed of a bundle: every figure a ratio of two things measured in turn in one run.

python -m bench.decode                       measures the bundle that `make demo` left
python -m bench.decode BUNDLE CHECKPOINT     measures another
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.measure import (
    PACKAGES,
    make_parser,
    measure_in_turn,
    measure_memory,
    print_machine,
    time_startup,
    time_torch,
)
from cli.errors import one_line_errors
from cli.output import require_writable, write_json
from runtime.measure.speed import describe_machine

DEMO = Path("build/demo")
# What is asked for; printed beside the figures.
AIMS = {
    "decode_ratio_to_pytorch": ">= 3",
    "loop_ratio_to_unrolled": "<= 1.05",
    "speed_at_1024_to_64": ">= 0.7",
    "memory_share": ">= 0.6",
    "ratio_to_other": ">= 2, of an int4 bundle to the float32 one",
    "engine_overhead": "<= 0.03",
    "ouro_help_s": "< 0.3",
    "import_runtime_s": "< 0.1",
}


def bench_decode(
    bundle: Path,
    checkpoint: Path,
    depth: int,
    rounds: int,
    tokens: int,
    threads: int,
    other: Path | None = None,
) -> dict[str, Any]:
    """Measures the engine against PyTorch, the unrolled graph, a longer context, another bundle.

    Args:
        bundle: made from `checkpoint`.
        checkpoint: the PyTorch model.
        depth: recurrences.
        rounds: turns for each of the things compared.
        tokens: tokens decoded a turn.
        threads: of all.
        other: a bundle of the same checkpoint at another precision.
    """
    import torch

    from bench.unroll import write_unrolled
    from ouroboros.checkpoint import load_checkpoint
    from runtime import Engine
    from runtime.decode.request import check_depths
    from runtime.measure.options import BenchOptions
    from runtime.measure.speed import bench_engine, time_decode

    torch.set_num_threads(threads)
    model, _ = load_checkpoint(checkpoint)
    with (
        tempfile.TemporaryDirectory(prefix="ouro-bench-") as temporary,
        Engine.open(bundle, threads=threads) as engine,
        contextlib.ExitStack() as opened,
    ):
        check_depths(depth, 1, engine.manifest.depth)
        unrolled_bundle = Path(temporary) / "unrolled"
        write_unrolled(bundle, unrolled_bundle, depth)
        unrolled = opened.enter_context(Engine.open(unrolled_bundle, threads=threads))

        def decoding(subject: Engine, context: int = 64) -> Callable[[], Sequence[float]]:
            return lambda: time_decode(subject, depth, context, tokens).token_s

        subjects = {
            "engine": decoding(engine),
            "unrolled": decoding(unrolled),
            "engine_1024": decoding(engine, 1024),
            "pytorch": lambda: time_torch(model, depth, 1, 64, tokens).token_s,
        }
        if other is not None:
            against = opened.enter_context(Engine.open(other, threads=threads))
            check_depths(depth, 1, against.manifest.depth)
            subjects["other"] = decoding(against)
        seconds = measure_in_turn(subjects, rounds)
        asked = BenchOptions((depth,), (64,), tokens, rounds)
        own = bench_engine(engine, asked, threads=threads)
    row = own.rows[0]
    ratio = {} if other is None else {"ratio_to_other": seconds["other"] / seconds["engine"]}
    return {
        "depth": depth,
        "threads": threads,
        "decode_ms": {name: round(value * 1e3, 3) for name, value in seconds.items()},
        "decode_ratio_to_pytorch": round(seconds["pytorch"] / seconds["engine"], 3),
        "loop_ratio_to_unrolled": round(seconds["engine"] / seconds["unrolled"], 4),
        "speed_at_1024_to_64": round(seconds["engine"] / seconds["engine_1024"], 3),
        **{name: round(value, 3) for name, value in ratio.items()},
        "tokens_per_s": round(1 / seconds["engine"], 2),
        "engine_overhead": round(row.engine_overhead, 5),
        "memory_share": round(row.memory_share, 3),
        "memory_read_gb_per_s": round(own.read_bytes_per_s / 1e9, 2),
        "weight_mb_per_token": round(row.weight_bytes / 1e6, 1),
    }


def print_figures(figures: dict[str, Any]) -> None:
    """Prints every figure with what is asked of it, then the machine."""
    for name, value in figures.items():
        if name != "machine":
            aim = f"   (asked: {AIMS[name]})" if name in AIMS else ""
            print(f"{name:<26} {value}{aim}")
    print_machine(figures["machine"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints; with `--json` writes the figures too."""
    from runtime.measure.speed import available_cores

    parser = make_parser("bench.decode", __doc__)
    parser.add_argument("bundle", type=Path, nargs="?", default=DEMO / "bundle")
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEMO / "trained")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="turns for each; medians count")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded a turn")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument(
        "--memory",
        type=int,
        default=0,
        metavar="TOKENS",
        help="also watch resident memory over this many, such as 10000; takes minutes",
    )
    parser.add_argument(
        "--other", type=Path, metavar="BUNDLE", help="also measure this one, of another precision"
    )
    parser.add_argument("--memory-depth", type=int, default=1, help="depth for --memory")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    for path in (given.bundle, given.checkpoint):
        if not path.is_dir():
            sys.exit(f"error: {path} is not there; run `make demo` first, or name another")
    require_writable(given.json, [given.bundle, given.checkpoint, given.other])
    figures = bench_decode(
        given.bundle,
        given.checkpoint,
        given.depth,
        given.rounds,
        given.tokens,
        given.threads,
        given.other,
    )
    figures |= time_startup()
    if given.memory:
        from runtime import Engine

        sequences = 10
        with Engine.open(given.bundle, threads=given.threads) as engine:
            figures["memory"] = measure_memory(
                engine, given.memory_depth, sequences, max(1, given.memory // sequences)
            )
    figures["machine"] = describe_machine(PACKAGES)
    print_figures(figures)
    if given.json is not None:
        write_json(given.json, figures)


if __name__ == "__main__":
    with one_line_errors():
        main()
