"""Parity and speed on a GPU, at every precision, beside PyTorch eager in the same run.

python -m bench.gpu                       measures the checkpoint that `make demo` left
python -m bench.gpu CHECKPOINT --json     measures another, into bench/results/<device>.json
python -m bench.gpu --export-only         leaves the bundles in --work; needs no GPU
python -m bench.gpu --parity-only --reuse checks those; the GPU may do something else meanwhile
python -m bench.gpu --speed-only --json   times those, and writes the parity found before as well

A part, parity or speed, goes into the file as soon as it is done, with the date and versions of its
own, and `untimed` says what could not be timed and why. What else is in the file stays: of the part
itself the precisions and backends that were not asked for, where they are of the same checkpoint,
device and versions. All defaults together take about five minutes on a data-centre GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.decode import DEMO
from bench.gpu_bundles import Bundles, Shape
from bench.gpu_report import (
    ParityRow,
    SpeedRow,
    describe_device,
    has_tensorrt,
    print_tables,
    read_results,
    result_name,
    write_part,
)
from bench.measure import make_parser, time_torch
from cli.errors import one_line_errors
from cli.output import require_writable
from ouroboros.checkpoint import checkpoint_sha256
from runtime.bundle.contract import PRECISIONS
from runtime.engine import Engine
from runtime.errors import EngineError, RuntimeFault
from runtime.measure.speed import DecodeTiming

RESULTS = Path("bench/results")
WORK = Path("build/gpu")
PYTORCH = {"fp32": "float32", "fp16": "float16"}
PARTS = ("export", "parity", "speed")
PARITY = "parity.json"
FAILURES = {"parity": "parity", "speed": "untimed"}
"""Which rows say what failed in a part."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """One turn of a subject.

    Attributes:
        decode: its times.
        host_bytes: copied between host and device a token of every row; None where not counted.
    """

    decode: DecodeTiming
    host_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Subject:
    """Something that is timed: a bundle on a backend, or PyTorch.

    Attributes:
        precision: of its weights.
        name: "cuda", "trt", "cpu" or "pytorch".
        time: decodes at a shape, so many tokens.
    """

    precision: str
    name: str
    time: Callable[[Shape, int], Timing]


def bench_gpu(
    bundles: Bundles,
    precisions: Sequence[str],
    backends: Sequence[str],
    shapes: Sequence[Shape],
    rounds: int,
    tokens: int,
    torch_device: str | None,
    parts: Sequence[str] = PARTS,
    keep: Callable[[str, Sequence[ParityRow]], None] = lambda kind, rows: None,
) -> tuple[list[ParityRow], list[SpeedRow]]:
    """Exports, checks and times a checkpoint at every precision on every backend.

    All that is timed is loaded at once and takes turns.

    Args:
        bundles: what to export or take.
        precisions: of PRECISIONS.
        backends: of "cuda", "trt" and "cpu".
        shapes: to time.
        rounds: turns for each subject, one more before them does not count.
        tokens: tokens timed a turn.
        torch_device: where PyTorch runs; None leaves it out.
        parts: of PARTS, what to do.
        keep: called with `parity` and its rows when all are known, and with `untimed` and what
            can't be timed before anything is.

    Returns:
        Parity, a row too for what could not be timed; and speeds.
    """
    parity: list[ParityRow] = []
    subjects: list[Subject] = []
    made = {precision: bundles.make(precision, shapes, tokens) for precision in precisions}
    failed = set()
    with contextlib.ExitStack() as opened:
        for part in (one for one in ("parity", "speed") if one in parts):
            pairs = ((precision, backend) for precision in precisions for backend in backends)
            rows: list[ParityRow] = []
            for precision, backend in (pair for pair in pairs if pair not in failed):
                bundle, refused = made[precision]
                try:
                    if bundle is None or (backend == "trt" and refused):
                        raise EngineError(refused)
                    if part == "parity":
                        bundles.report(f"{precision}: parity on {backend}")
                        rows.append(check_parity(bundle, precision, backend))
                    else:
                        engine = opened.enter_context(Engine.open(bundle, backend=backend))
                        subjects.append(Subject(precision, backend, partial(time_engine, engine)))
                except RuntimeFault as error:
                    failed.add((precision, backend))
                    rows.append(ParityRow(precision, backend, "ERROR", None, str(error)))
            keep(FAILURES[part], rows)
            parity += rows
        if not subjects:
            return parity, []
        if torch_device is not None:
            subjects += make_pytorch(bundles.checkpoint, torch_device)
        return parity, time_shapes(subjects, shapes, rounds, tokens, bundles.report)


def check_parity(bundle: Path, precision: str, backend: str) -> ParityRow:
    """The parity check of a bundle on a backend.

    Args:
        bundle: its folder.
        precision: of the bundle.
        backend: "cuda", "trt" or "cpu".

    Raises:
        RuntimeFault: it can't run.
    """
    from runtime.parity.check import check_bundle

    found = check_bundle(bundle, backend)
    worst = found.worst_relative_l2
    known = worst if np.isfinite(worst) else None
    return ParityRow(precision, backend, found.verdict, known, "")


def make_pytorch(checkpoint: Path, device: str) -> list[Subject]:
    """PyTorch eager to compare with, one subject a type, on a device.

    Args:
        checkpoint: the model.
        device: "cuda", or "cpu".
    """
    import torch

    from ouroboros.checkpoint import load_checkpoint

    def timer(model: Any) -> Callable[[Shape, int], Timing]:
        return lambda shape, tokens: Timing(
            time_torch(model, shape.depth, shape.batch, shape.context, tokens), None
        )

    return [
        Subject(
            precision,
            "pytorch",
            timer(load_checkpoint(checkpoint)[0].to(device, getattr(torch, dtype))),
        )
        for precision, dtype in PYTORCH.items()
    ]


def time_shapes(
    subjects: Sequence[Subject],
    shapes: Sequence[Shape],
    rounds: int,
    tokens: int,
    report: Callable[[str], None],
) -> list[SpeedRow]:
    """Times every subject at every shape, taking turns.

    Args:
        subjects: what is timed.
        shapes: to time.
        rounds: turns for each.
        tokens: tokens timed a turn.
        report: called with a line of progress now and then.
    """
    rows = []
    for shape in shapes:
        report(f"depth {shape.depth}, batch {shape.batch}, context {shape.context}")
        timings: list[list[Timing]] = [[] for _ in subjects]
        for turn in range(rounds + 1):
            for subject, found in zip(subjects, timings, strict=True):
                timing = subject.time(shape, tokens)
                found += [timing] if turn else []
        rows += [
            summarise(subject.precision, subject.name, shape, found)
            for subject, found in zip(subjects, timings, strict=True)
        ]
    return rows


def time_engine(engine: Engine, shape: Shape, tokens: int) -> Timing:
    """Times greedy decoding of a batch of random prompts.

    Args:
        engine: an open bundle.
        shape: depth, batch and context.
        tokens: tokens decoded and timed one by one.
    """
    generator = np.random.default_rng(0)
    size = (shape.batch, shape.context)
    prompts = generator.integers(0, engine.manifest.model.vocab_size, size)
    decoder = engine.new_decoder([shape.depth] * shape.batch)
    start = time.perf_counter()
    logits = decoder.prefill(list(prompts))
    prefill_s = time.perf_counter() - start
    token_s, inside_s, moved = [], [], decoder.host_bytes
    for _ in range(tokens):
        start, inside = time.perf_counter(), decoder.run_s
        logits = decoder.step(logits.argmax(-1))
        token_s.append(time.perf_counter() - start)
        inside_s.append(decoder.run_s - inside)
    skipped = 2 if tokens > 4 else 0  # the first ones bind buffers
    host_bytes = (decoder.host_bytes - moved) // tokens
    return Timing(DecodeTiming(token_s[skipped:], inside_s[skipped:], prefill_s), host_bytes)


def summarise(precision: str, subject: str, shape: Shape, turns: Sequence[Timing]) -> SpeedRow:
    """Medians over the turns of one subject.

    Args:
        precision: of its weights.
        subject: its name.
        shape: what was timed.
        turns: one timing each.
    """
    timings = [turn.decode for turn in turns]
    token_s = statistics.median(one for timing in timings for one in timing.token_s)
    outside = [
        1 - inside / whole
        for timing in timings
        for inside, whole in zip(timing.inside_s, timing.token_s, strict=True)
    ]
    return SpeedRow(
        precision=precision,
        subject=subject,
        depth=shape.depth,
        batch=shape.batch,
        context=shape.context,
        decode_ms=round(token_s * 1e3, 4),
        tokens_per_s=round(shape.batch / token_s, 2),
        prefill_tokens_per_s=round(
            shape.batch * shape.context / statistics.median(t.prefill_s for t in timings), 1
        ),
        engine_overhead=round(statistics.median(outside), 4),
        host_bytes=turns[-1].host_bytes,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints; with `--json` writes the figures too."""
    given = parse(arguments)
    if not given.checkpoint.is_dir():
        sys.exit(f"error: {given.checkpoint} is not there; run `make demo`, or name another")
    device = describe_device()
    backends = given.backends or ["cuda", *(["trt"] if has_tensorrt(device) else [])]
    if device["gpu"] is None and set(backends) != {"cpu"} and given.only != "export":
        sys.exit("error: CUDA shows no GPU here; run `ouro doctor`, or give --backends cpu")
    file = given.results / result_name(device)
    if given.json:
        file.parent.mkdir(parents=True, exist_ok=True)
        require_writable(file, [given.checkpoint])
        read_results(file)  # refused now, not when the figures are there
    parts = [given.only] if given.only else PARTS
    torch_device = given.torch_device
    if torch_device == "cuda" and "speed" in parts:
        import torch

        if not torch.cuda.is_available():
            print(f"torch {torch.__version__} has no CUDA here: PyTorch is left out")
            torch_device = "none"
    shapes = [
        Shape(depth, batch, context)
        for depth in given.depths
        for batch in given.batches
        for context in given.contexts
    ]
    how = {
        "date": time.strftime("%Y-%m-%d"),
        "checkpoint": checkpoint_sha256(given.checkpoint),
        "device": device,
    }

    asked = [(precision, backend) for precision in given.precisions for backend in backends]

    def keep(kind: str, rows: Sequence[ParityRow], how: dict[str, Any] = how) -> None:
        if kind == "parity":
            write_part(given.work / PARITY, kind, rows, how, asked)
        if given.json:
            write_part(file, kind, rows, how, asked)

    before, measured = find_parity(given.work, how) if given.only == "speed" else ([], how)
    if before:
        keep("parity", before, measured)
    parity, speeds = bench_gpu(
        Bundles(
            given.checkpoint,
            given.work,
            "trt" in backends,
            given.reuse or given.only == "speed",
            lambda line: print(line, file=sys.stderr),
        ),
        given.precisions,
        backends,
        shapes,
        given.rounds,
        given.tokens,
        None if torch_device == "none" else torch_device,
        parts,
        keep,
    )
    if given.only == "export":
        return
    print_tables([*before, *parity], speeds, device)
    if given.json:
        if speeds:
            timed = {"rounds": given.rounds, "tokens": given.tokens}
            write_part(file, "speed", speeds, how | timed, asked)
        print(f"written to {file}")


def find_parity(work: Path, how: dict[str, Any]) -> tuple[list[ParityRow], dict[str, Any]]:
    """The parity that an earlier run found for a checkpoint on a device, if any.

    Args:
        work: folder of the bundles.
        how: `checkpoint`, its hash, and `device`, from `describe_device`.

    Returns:
        Rows, none where there are none; and how they were found, as `write_part` takes it.
    """
    kept = read_results(work / PARITY)
    measured = kept.get("measured", {}).get("parity", {})
    if any(measured.get(name) != how[name] for name in ("checkpoint", "device")):
        return [], how
    return [ParityRow(**row) for row in kept["parity"]], measured


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; None takes this process's."""
    parser = make_parser("bench.gpu", __doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEMO / "trained")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--backends", nargs="+", choices=("cuda", "trt", "cpu"))
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 8, 16])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--contexts", nargs="+", type=int, default=[64, 1024])
    parser.add_argument("--rounds", type=int, default=3, help="turns for each; medians count")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded a turn")
    parser.add_argument("--torch-device", choices=("cuda", "cpu", "none"), default="cuda")
    only = parser.add_mutually_exclusive_group()
    for part in PARTS:
        only.add_argument(f"--{part}-only", dest="only", action="store_const", const=part)
    parser.add_argument("--reuse", action="store_true", help="bundles of this checkpoint in --work")
    parser.add_argument("--work", type=Path, default=WORK, help="where bundles are written")
    parser.add_argument("--json", action="store_true", help="into <device>.json in --results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with one_line_errors():
        main()
