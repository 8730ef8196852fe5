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

from runtime.decode import request
from runtime.decode.options import Options, check_options
from runtime.decode.sampling import Sampler
from runtime.errors import EngineError
from runtime.text.codec import TextStream

if TYPE_CHECKING:
    from runtime.bundle.manifest import Manifest
    from runtime.engine import Engine


CONTEXTS = (64, 1024)
"""Tokens before the measured ones where none are asked for."""


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


def bench_engine(
    engine: Engine,
    depths: Sequence[int],
    contexts: Sequence[int] = CONTEXTS,
    tokens: int = 32,
    repeats: int = 3,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Measures every depth at every context length, in turn, `repeats` times.

    Args:
        engine: an open bundle.
        depths: recurrences to measure.
        contexts: tokens in the cache before the first measured token.
        tokens: tokens decoded a run.
        repeats: runs of each; they take turns, so that a busy machine spoils all alike.
        threads: the engine's, to measure memory with as many.
        progress: called with a line about each run.

    Raises:
        EngineError: a depth or a length outside what the bundle allows, or no repeat.
    """
    manifest = engine.manifest
    check_runs(manifest, depths, contexts, tokens, repeats)
    pairs = [(depth, context) for depth in depths for context in contexts]
    for context in contexts:
        engine.check_length(context, tokens)
    rate = measure_read_rate(threads)
    time_decode(engine, depths[0], min(contexts), 4)  # the first run pays for page faults
    runs: dict[tuple[int, int], list[DecodeTiming]] = {pair: [] for pair in pairs}
    for repeat in range(repeats):
        for depth, context in pairs:
            if progress is not None:
                progress(f"depth {depth}, context {context}, run {repeat + 1} of {repeats}")
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


def fitting_contexts(manifest: Manifest, tokens: int) -> list[int]:
    """Those of CONTEXTS that a model has positions for, or the longest that it has them for.

    Args:
        manifest: the bundle's.
        tokens: decoded after each.
    """
    longest = max(1, manifest.model.max_position_embeddings - tokens)
    return [one for one in CONTEXTS if one <= longest] or [longest]


def check_runs(
    manifest: Manifest, depths: Sequence[int], contexts: Sequence[int], tokens: int, repeats: int
) -> None:
    """Refuses, of the manifest alone, what `bench_engine` can't measure; arguments as there.

    Raises:
        EngineError: a depth or a length outside what the bundle allows, or no repeat.
    """
    if repeats < 1:
        raise EngineError(f"repeats={repeats} is not allowed", "a whole number of 1 or more")
    check_options(Options(max_new_tokens=tokens), manifest.sampling)
    for depth in depths:
        request.check_depths(depth, 1, manifest.depth)
    for context in contexts:
        request.check_length(context, tokens, manifest)


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
