"""Measures an engine: decoding, prefill, its own overhead, and what memory would allow."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.bundle.reader import read_manifest
from runtime.decode import request
from runtime.decode.options import Options, check_options
from runtime.decode.sampling import Sampler
from runtime.engine import Engine
from runtime.errors import EngineError
from runtime.measure.options import CONTEXTS, BenchOptions
from runtime.text.codec import TextStream

if TYPE_CHECKING:
    from runtime.bundle.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class BenchRow:
    """One depth at one context length, batch 1; medians over the repeats.

    Attributes:
        depth: recurrences.
        context: tokens in the cache before the first measured one.
        decode_ms: time of one token, engine and sampling included.
        tokens_per_s: 1000 / decode_ms.
        prefill_tokens_per_s: speed at which the context was fed.
        engine_overhead: share of a token's time spent outside ONNX Runtime.
        weight_bytes: weights a token touches.
        memory_share: of the speed that reading those weights at `read_bytes_per_s` would allow.
    """

    depth: int
    context: int
    decode_ms: float
    tokens_per_s: float
    prefill_tokens_per_s: float
    engine_overhead: float
    weight_bytes: int
    memory_share: float


@dataclasses.dataclass(frozen=True)
class BenchReport:
    """Rows, and the machine they were measured on."""

    rows: tuple[BenchRow, ...]
    read_bytes_per_s: float
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class DecodeTiming:
    """One run: seconds of each token, of them inside ONNX Runtime, and of the prefill."""

    token_s: list[float]
    inside_s: list[float]
    prefill_s: float


def bench_bundle(
    path: str | os.PathLike[str],
    options: BenchOptions | None = None,
    *,
    backend: str = "auto",
    threads: int | None = None,
    report: Callable[[str], None] | None = None,
) -> BenchReport:
    """Opens a bundle and measures it as `bench_engine` does.

    What is asked for is held against the manifest first: to read all of a bundle takes long.

    Args:
        path: the bundle's directory.
        options: what is measured; None for the defaults.
        backend: as for `Engine.open`.
        threads: as for `Engine.open`.
        report: called with a line about each run.

    Raises:
        BundleError: the bundle is not whole.
        EngineError: as `Engine.open` and `bench_engine`.
    """
    chosen = settle_runs(options or BenchOptions(), read_manifest(path))
    with Engine.open(path, backend=backend, threads=threads) as engine:
        return bench_engine(engine, chosen, threads=threads, report=report)


def bench_engine(
    engine: Engine,
    options: BenchOptions | None = None,
    *,
    threads: int | None = None,
    report: Callable[[str], None] | None = None,
) -> BenchReport:
    """Measures every depth at every context length, in turn, `repeats` times.

    They take turns, so that a busy machine spoils all alike.

    Args:
        engine: an open bundle.
        options: what is measured; None for the defaults.
        threads: the engine's, to measure memory with as many.
        report: called with a line about each run.

    Raises:
        EngineError: a depth or a length outside what the bundle allows, or no repeat.
    """
    manifest = engine.manifest
    chosen = settle_runs(options or BenchOptions(), manifest)
    tokens, repeats = chosen.tokens, chosen.repeats
    pairs = [(depth, context) for depth in chosen.depths for context in chosen.contexts]
    for context in chosen.contexts:
        engine.check_length(context, tokens)
    rate = measure_read_rate(threads)
    # The first run pays for page faults.
    time_decode(engine, chosen.depths[0], min(chosen.contexts), 4)
    runs: dict[tuple[int, int], list[DecodeTiming]] = {pair: [] for pair in pairs}
    for repeat in range(repeats):
        for depth, context in pairs:
            if report is not None:
                report(f"depth {depth}, context {context}, run {repeat + 1} of {repeats}")
            runs[depth, context].append(time_decode(engine, depth, context, tokens))
    rows = []
    for (depth, context), timings in runs.items():
        token_s = statistics.median(t for timing in timings for t in timing.token_s)
        outside = [
            1 - inside / whole
            for timing in timings
            for inside, whole in zip(timing.inside_s, timing.token_s, strict=True)
        ]
        model = manifest.model
        weight_bytes = model.step_bytes * depth + model.once_bytes
        rows.append(
            BenchRow(
                depth=depth,
                context=context,
                decode_ms=token_s * 1e3,
                tokens_per_s=1 / token_s,
                prefill_tokens_per_s=context / statistics.median(t.prefill_s for t in timings),
                engine_overhead=statistics.median(outside),
                weight_bytes=weight_bytes,
                memory_share=weight_bytes / rate / token_s,
            )
        )
    return BenchReport(tuple(rows), rate, describe_machine())


def fitting_contexts(manifest: Manifest, tokens: int) -> tuple[int, ...]:
    """Those of CONTEXTS that a model has positions for, or the longest that it has them for.

    Args:
        manifest: the bundle's.
        tokens: decoded after each.
    """
    longest = max(1, manifest.model.max_position_embeddings - tokens)
    return tuple(one for one in CONTEXTS if one <= longest) or (longest,)


def settle_runs(options: BenchOptions, manifest: Manifest) -> BenchOptions:
    """The options with depths and contexts chosen; refuses what the manifest alone forbids.

    Args:
        options: what is to be measured.
        manifest: the bundle's.

    Raises:
        EngineError: a depth or a length outside what the bundle allows, or no repeat.
    """
    if options.repeats < 1:
        raise EngineError(
            f"repeats={options.repeats} is not allowed", "a whole number of 1 or more"
        )
    check_options(Options(max_new_tokens=options.tokens), manifest.sampling)
    depths = options.depths or (manifest.depth.default,)
    contexts = options.contexts or fitting_contexts(manifest, options.tokens)
    for depth in depths:
        request.check_depths(depth, 1, manifest.depth)
    for context in contexts:
        request.check_length(context, options.tokens, manifest)
    return dataclasses.replace(options, depths=depths, contexts=contexts)


def time_decode(engine: Engine, depth: int, context: int, tokens: int) -> DecodeTiming:
    """Times one greedy run, as `Engine.stream` does it, text included.

    Args:
        engine: an open bundle.
        depth: recurrences.
        context: random tokens fed first.
        tokens: tokens decoded and timed one by one.
    """
    generator = np.random.default_rng(0)
    prompt = generator.integers(0, engine.manifest.model.vocab_size, context)
    decoder = engine.new_decoder([depth])
    sampler, text = Sampler(Options(temperature=0.0)), TextStream(engine.codec)
    start = time.perf_counter()
    logits = decoder.prefill([prompt])
    prefill_s = time.perf_counter() - start
    token_s, inside_s = [], []
    for _ in range(tokens):
        start, inside = time.perf_counter(), decoder.run_s
        token = sampler.choose(logits[0])
        text.push(token)
        logits = decoder.step([token])
        token_s.append(time.perf_counter() - start)
        inside_s.append(decoder.run_s - inside)
    if tokens > 4:  # the first tokens bind buffers and touch new memory
        token_s, inside_s = token_s[2:], inside_s[2:]
    return DecodeTiming(token_s, inside_s, prefill_s)


def measure_read_rate(threads: int | None = None, mebibytes: int = 1024, repeats: int = 5) -> float:
    """The rate at which this machine reads memory, in bytes a second: the best of several.

    Every thread reads its own part of an array, larger than most caches, with numpy's fastest
    reduction of those tried (bitwise or; max, sum and matrix products were slower).

    Args:
        threads: threads that read; None means one a core.
        mebibytes: size of the array.
        repeats: runs.
    """
    count = threads or available_cores()
    data = np.ones((count, mebibytes * 2**20 // 8 // count), np.int64)
    best = float("inf")
    with ThreadPoolExecutor(count) as pool:
        for _ in range(max(1, repeats)):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, data))
            best = min(best, time.perf_counter() - start)
    return data.nbytes / best


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine(more: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, cores, system and the versions that matter.

    Args:
        more: packages whose versions matter too.
    """
    versions = {}
    for name in ("ouroboros-llm", "onnxruntime", "numpy", "tokenizers", *more):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
