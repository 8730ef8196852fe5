"""How TensorRT plans are to be built, and the ranges that their profiles serve."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError
from export.options import DEFAULT_CAPABILITIES, DEFAULT_MAX_SEQ, TrtOptions
from runtime.backends.gpu import Gpu
from runtime.backends.trt_flavours import CHOICES, RTX, Flavour
from runtime.bundle.contract import (
    BATCH,
    BUCKET,
    DEPTH,
    NEW,
    PAST,
    PICKED,
    PREFILL_CHUNK,
    SCORE_CHUNK,
    SLOTS,
    TensorSpec,
    parse_size,
)
from runtime.bundle.plans import ProfileSpec, RangeSpec

MAX_BATCH = 1024

Range = tuple[int, int, int]  # least, best served, most


def check_options(options: TrtOptions, max_positions: int, whole_prompt: bool = False) -> int:
    """Checks what can be checked without TensorRT.

    Args:
        options: the user's.
        max_positions: the model's.
        whole_prompt: a prompt comes in one call, as `mean` pooling needs.

    Returns:
        The most tokens of a sequence.

    Raises:
        ExportError: an option is out of its range.
    """
    if options.flavour not in CHOICES:
        raise ExportError(
            f"the TensorRT flavour {options.flavour!r:.60} is not known",
            f"allowed: {', '.join(CHOICES)}",
        )
    for capability in options.compute_capabilities:
        if not re.fullmatch(r"[1-9]\d?\.\d", capability):
            raise ExportError(
                f"compute_capabilities={capability} is not one such as 8.9",
                f"give a list such as {','.join(DEFAULT_CAPABILITIES)}",
            )
    if not 1 <= options.max_batch <= MAX_BATCH:
        raise ExportError(f"max_batch={options.max_batch} is not allowed", f"give 1..{MAX_BATCH}")
    max_seq = options.max_seq
    if max_seq is None:
        max_seq = min(DEFAULT_MAX_SEQ, max_positions)
    least = min(_recorded_tokens(whole_prompt), max_positions)
    if not least <= max_seq <= max_positions:
        raise ExportError(
            f"max_seq={max_seq} is not allowed: the recorded cases that `ouro check` replays have "
            f"{least} tokens, the model has {max_positions} positions",
            f"give {least}..{max_positions}",
        )
    for name, smallest in (("opt_batch", 1), ("opt_past", 0), ("opt_new", 1), ("workspace_mb", 1)):
        given = getattr(options, name)
        if given is not None and given < smallest:
            raise ExportError(f"{name}={given} is not allowed", f"give {smallest} or more")
    _check_served_best(options, max_seq, whole_prompt)
    for name in ("timing_cache", "workspace_mb", "opt_batch", "opt_past", "opt_new"):
        given = getattr(options, name)
        if options.refit_from is not None and given != getattr(TrtOptions, name):
            raise ExportError(
                f"{name} is of a build, and refit_from builds nothing", "leave one of them out"
            )
    if options.timing_cache is not None:
        _check_writable(options.timing_cache)
    return max_seq


def _check_served_best(options: TrtOptions, max_seq: int, whole_prompt: bool) -> None:
    """Refuses sizes that a plan of these limits can't serve; a default is lowered to them."""
    past, chunk = _longest(max_seq, whole_prompt)
    for name, most, by in (
        ("opt_batch", options.max_batch, "--max-batch"),
        ("opt_past", past, "--max-seq"),
        ("opt_new", chunk, "--max-seq" if chunk == past else ""),
    ):
        given = getattr(options, name)
        if given > most and given != getattr(TrtOptions, name):
            more = f", or more with {by}" if by else f": a prompt is read by {chunk} tokens"
            raise ExportError(f"{name}={given} is above what a plan takes", f"give {most}{more}")


def _longest(max_seq: int, whole_prompt: bool) -> tuple[int, int]:
    """Most tokens in the cache, in whole buckets, and most new ones of a call."""
    past = -(-max_seq // BUCKET) * BUCKET
    return past, past if whole_prompt else min(past, PREFILL_CHUNK)


def _check_writable(file: Path) -> None:
    """Refuses a file that could not be written once a build of minutes is done."""
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ExportError(
            f"timing_cache={file} is a directory, or its directory is not there", "give a file"
        )
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise ExportError(f"timing_cache={file} may not be written", "give another file")


def _recorded_tokens(whole_prompt: bool) -> int:
    """Tokens of the longest recorded case that can't be left out.

    Of long texts the prompts are replayed that fit, but for a pooling over the whole prompt, with
    which only one is recorded.
    """
    from export.cases import DECODE, GREEDY, LONG_SPANS, PREFILL  # imports torch

    return max(PREFILL + max(DECODE, GREEDY), LONG_SPANS[1][1] if whole_prompt else 0)


def choose_capabilities(options: TrtOptions, flavour: Flavour, gpu: Gpu | None) -> tuple[str, ...]:
    """The compute capabilities to build for, each once.

    Raises:
        ExportError: TensorRT is to build without a GPU, or for another than the one it has.
    """
    asked = tuple(dict.fromkeys(options.compute_capabilities))
    if flavour == RTX:
        own = (gpu.compute_capability,) if gpu is not None else DEFAULT_CAPABILITIES
        return asked or own
    if gpu is None:
        raise ExportError(
            f"{flavour.title} builds on the GPU that will run the plan, and CUDA shows none here",
            "run this on that machine, or build ahead of time with --trt rtx",
        )
    if asked and asked != (gpu.compute_capability,):
        raise ExportError(
            f"compute_capabilities={','.join(asked)}: {flavour.title} builds only for the GPU it "
            f"runs on, {gpu.name} with {gpu.compute_capability}",
            "leave the option out",
        )
    return (gpu.compute_capability,)


def make_profiles(
    inputs: Sequence[TensorSpec],
    options: TrtOptions,
    max_seq: int,
    max_depth: int,
    default_depth: int,
    whole_prompt: bool = False,
) -> tuple[ProfileSpec, ...]:
    """The ranges of every input, for decoding and for prefill.

    Args:
        inputs: of the graph; a dimension is a number, a name, or a sum of names with factors.
        options: which values are served best, and the most rows.
        max_seq: most tokens of a sequence; rounded up to the buckets of an engine's cache.
        max_depth: most recurrences.
        default_depth: recurrences that are served best.
        whole_prompt: a prompt always comes in one call (`mean` pooling), not in chunks.

    Raises:
        ExportError: an input has a dimension that no profile knows.
    """
    # Whole buckets, for prompts too: as many tokens fit as the cache has slots.
    past, chunk = _longest(max_seq, whole_prompt)
    # A text that comes whole is scored in one call, all its logits at once.
    logits = chunk if whole_prompt else min(chunk, SCORE_CHUNK)
    common: dict[str, Range] = {
        BATCH: (1, min(options.opt_batch, options.max_batch), options.max_batch),
        PAST: (0, min(options.opt_past, past), past),
        SLOTS: (1, default_depth, max_depth),
    }
    named: dict[str, dict[str, Range]] = {
        "decode": {NEW: (1, 1, 1), PICKED: (1, 1, 1)},
        "prefill": {
            NEW: (1, min(options.opt_new, chunk), chunk),
            PICKED: (1, 1, logits),
        },
    }
    depth = (1, default_depth, max_depth)
    return tuple(
        ProfileSpec(
            name=name,
            shapes=tuple(
                _range_of(one, {**common, **sizes})
                for one in inputs
                if any(isinstance(size, str) for size in one.shape)
            ),
            values=tuple(
                RangeSpec(one.name, *((value,) for value in depth))
                for one in inputs
                if one.name == DEPTH
            ),
        )
        for name, sizes in named.items()
    )


def _range_of(spec: TensorSpec, sizes: dict[str, Range]) -> RangeSpec:
    ranges: list[Range] = []
    for size in spec.shape:
        if isinstance(size, int):
            ranges.append((size, size, size))
            continue
        terms = parse_size(size)
        unknown = next((name for _, name in terms if name not in sizes), None)
        if unknown is not None:
            raise ExportError(
                f"the graph's input {spec.name} has the dimension {unknown!r}",
                f"a TensorRT profile knows {', '.join(sizes)}",
            )
        least, good, most = (
            sum(factor * sizes[name][end] for factor, name in terms) for end in range(3)
        )
        ranges.append((least, good, most))
    low, best, high = (tuple(values) for values in zip(*ranges, strict=True))
    return RangeSpec(spec.name, low, best, high)
