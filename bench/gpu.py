"""Parity and speed on a GPU, at every precision, beside PyTorch eager in the same run.

python -m bench.gpu                       measures the checkpoint that `make demo` left
python -m bench.gpu CHECKPOINT --json     measures another; writes bench/results/<device>.json
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.decode import DEMO
from bench.gpu_report import (
    ParityRow,
    SpeedRow,
    describe_device,
    has_tensorrt,
    print_tables,
    result_name,
    to_json,
)
from bench.measure import make_parser, time_torch
from cli.errors import one_line_errors
from cli.output import require_writable, write_json
from runtime.engine import Engine
from runtime.errors import RuntimeFault
from runtime.measure.speed import DecodeTiming

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
RESULTS = Path("bench/results")
WORK = Path("build/gpu")
PYTORCH = {"pytorch fp32": "float32", "pytorch fp16": "float16"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured: recurrences, rows, and tokens in the cache before the first one timed."""

    depth: int
    batch: int
    context: int


def bench_gpu(
    checkpoint: Path,
    work: Path,
    precisions: Sequence[str],
    backends: Sequence[str],
    shapes: Sequence[Shape],
    rounds: int,
    tokens: int,
    torch_device: str | None,
    report: Callable[[str], None],
) -> tuple[list[ParityRow], list[SpeedRow]]:
    """Exports, checks and times a checkpoint at every precision on every backend.

    Args:
        checkpoint: the PyTorch model.
        work: where bundles are written, each over the one before it.
        precisions: of PRECISIONS.
        backends: of "cuda", "trt" and "cpu".
        shapes: to time.
        rounds: turns for each subject, one more before them does not count.
        tokens: tokens timed a turn.
        torch_device: where PyTorch runs; None leaves it out.
        report: called with a line of progress now and then.
    """
    from runtime.parity.check import check_bundle

    parity: list[ParityRow] = []
    speeds: list[SpeedRow] = []
    pytorch = {} if torch_device is None else make_pytorch(checkpoint, torch_device)
    for precision in precisions:
        bundle, refused = make_bundle(
            checkpoint, work, precision, "trt" in backends, shapes, tokens, report
        )
        engines: dict[str, Engine] = {}
        for backend in backends:
            if bundle is None or (backend == "trt" and refused):
                parity.append(ParityRow(precision, backend, "ERROR", None, refused))
                continue
            report(f"{precision}: parity on {backend}")
            try:
                found = check_bundle(bundle, backend)
                worst = found.worst_relative_l2
                known = worst if np.isfinite(worst) else None
                parity.append(ParityRow(precision, backend, found.verdict, known, ""))
                engines[backend] = Engine.open(bundle, backend=backend)
            except RuntimeFault as error:
                parity.append(ParityRow(precision, backend, "ERROR", None, str(error)))
        speeds += time_shapes(precision, engines, pytorch, shapes, rounds, tokens, report)
        for engine in engines.values():
            engine.close()
    return parity, speeds


def make_pytorch(checkpoint: Path, device: str) -> dict[str, Any]:
    """The PyTorch models to compare with, by name, on a device.

    Args:
        checkpoint: the model.
        device: "cuda", or "cpu".
    """
    import torch

    from ouroboros.checkpoint import load_checkpoint

    return {
        name: load_checkpoint(checkpoint)[0].to(device, getattr(torch, dtype))
        for name, dtype in PYTORCH.items()
    }


def make_bundle(
    checkpoint: Path,
    work: Path,
    precision: str,
    plans: bool,
    shapes: Sequence[Shape],
    tokens: int,
    report: Callable[[str], None],
) -> tuple[Path | None, str]:
    """Exports a checkpoint for the shapes to be measured.

    Args:
        checkpoint: the model.
        work: the bundle is its entry named after the precision.
        precision: of PRECISIONS.
        plans: also build TensorRT plans; where that fails the bundle goes without, and says so.
        shapes: to be measured.
        tokens: that follow the context.
        report: called with a line of progress now and then.

    Returns:
        The bundle, None where there is none; and why it has no plan, or why there is none.
    """
    from export import TrtOptions, export_bundle
    from export.errors import ExportError

    out = work / precision
    depth = max(shape.depth for shape in shapes)
    longest = max(shape.context for shape in shapes) + tokens
    options = TrtOptions(
        max_batch=max(shape.batch for shape in shapes), opt_past=longest // 2, max_seq=longest
    )
    work.mkdir(parents=True, exist_ok=True)
    refused = ""
    for format, trt in (("trt", options), ("onnx", None))[0 if plans else 1 :]:
        report(f"{precision}: exporting, --format {format}")
        try:
            export_bundle(
                checkpoint, out, max_depth=depth, precision=precision, format=format, trt=trt
            )
        except ExportError as error:
            refused = str(error)
            report(f"{precision}: {refused}")
        else:
            return out, refused
    return None, refused


def time_shapes(
    precision: str,
    engines: dict[str, Engine],
    pytorch: dict[str, Any],
    shapes: Sequence[Shape],
    rounds: int,
    tokens: int,
    report: Callable[[str], None],
) -> list[SpeedRow]:
    """Times every engine and PyTorch model at every shape, taking turns.

    Args:
        precision: of the engines' bundle.
        engines: by backend.
        pytorch: models by name.
        shapes: to time.
        rounds: turns for each.
        tokens: tokens timed a turn.
        report: called with a line of progress now and then.
    """
    rows = []
    for shape in shapes if engines else ():
        report(f"{precision}: depth {shape.depth}, batch {shape.batch}, context {shape.context}")
        timings: dict[str, list[DecodeTiming]] = {name: [] for name in (*engines, *pytorch)}
        for turn in range(rounds + 1):
            for name, engine in engines.items():
                timing = time_engine(engine, shape, tokens)
                timings[name] += [timing] if turn else []
            for name, model in pytorch.items():
                timing = time_torch(model, shape.depth, shape.batch, shape.context, tokens)
                timings[name] += [timing] if turn else []
        rows += [summarise(precision, name, shape, found) for name, found in timings.items()]
    return rows


def time_engine(engine: Engine, shape: Shape, tokens: int) -> DecodeTiming:
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
    token_s, inside_s = [], []
    for _ in range(tokens):
        start, inside = time.perf_counter(), decoder.run_s
        logits = decoder.step(logits.argmax(-1))
        token_s.append(time.perf_counter() - start)
        inside_s.append(decoder.run_s - inside)
    skipped = 2 if tokens > 4 else 0  # the first ones bind buffers
    return DecodeTiming(token_s[skipped:], inside_s[skipped:], prefill_s)


def summarise(
    precision: str, subject: str, shape: Shape, timings: Sequence[DecodeTiming]
) -> SpeedRow:
    """Medians over the turns of one subject.

    Args:
        precision: of the bundle it took turns with.
        subject: its name.
        shape: what was timed.
        timings: one a turn.
    """
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
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints; with `--json` writes the figures too."""
    given = parse(arguments)
    if not given.checkpoint.is_dir():
        sys.exit(f"error: {given.checkpoint} is not there; run `make demo`, or name another")
    device = describe_device()
    backends = given.backends or ["cuda", *(["trt"] if has_tensorrt(device) else [])]
    if device["gpu"] is None and set(backends) != {"cpu"}:
        sys.exit("error: CUDA shows no GPU here; run `ouro doctor`, or give --backends cpu")
    file = given.results / result_name(device)
    if given.json:
        file.parent.mkdir(parents=True, exist_ok=True)
        require_writable(file, [given.checkpoint])
    torch_device = given.torch_device
    if torch_device == "cuda":
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
    parity, speeds = bench_gpu(
        given.checkpoint,
        given.work,
        given.precisions,
        backends,
        shapes,
        given.rounds,
        given.tokens,
        None if torch_device == "none" else torch_device,
        lambda line: print(line, file=sys.stderr),
    )
    print_tables(parity, speeds, device)
    if given.json:
        how = {"device": device, "rounds": given.rounds, "tokens": given.tokens}
        write_json(file, how | to_json(parity, speeds))
        print(f"written to {file}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; None takes this process's."""
    parser = make_parser("bench.gpu", __doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEMO / "trained")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--backends", nargs="+", choices=("cuda", "trt", "cpu"))
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 8, 16])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--contexts", nargs="+", type=int, default=[64, 1024])
    parser.add_argument("--rounds", type=int, default=5, help="turns for each; medians count")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded a turn")
    parser.add_argument("--torch-device", choices=("cuda", "cpu", "none"), default="cuda")
    parser.add_argument("--work", type=Path, default=WORK, help="where bundles are written")
    parser.add_argument("--json", action="store_true", help="write <device>.json to --results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with one_line_errors():
        main()
