"""How TensorRT plans are to be built, and the ranges that their profiles serve."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError
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

DEFAULT_MAX_SEQ = 2048
# Built for where TensorRT-RTX has no GPU to look at: GeForce 30, 40 and 50.
DEFAULT_CAPABILITIES = ("8.6", "8.9", "12.0")
MAX_BATCH = 1024

Range = tuple[int, int, int]  # least, best served, most


@dataclass(frozen=True)
class TrtOptions:
    """What the user may say about a plan.

    Attributes:
        flavour: `auto`, `trt` or `rtx`.
        compute_capabilities: of the GPUs it is to run on, such as "8.9"; TensorRT-RTX only.
            Empty: this machine's GPU, without one DEFAULT_CAPABILITIES.
        max_batch: most rows.
        max_seq: most tokens of a sequence; None: 2048, or the model's positions where fewer.
        opt_batch: rows that are served best.
        opt_past: tokens in the cache that are served best.
        opt_new: new tokens that are served best in prefill.
        refit: keep the weights replaceable.
        refit_from: a bundle whose plan, built with `refit`, gets the new weights; nothing is built.
        workspace_mb: scratch memory that TensorRT may use, in MiB; None: its own default.
        timing_cache: a file of measured kernels: read where it is there, written after the build;
            TensorRT only.
    """

    flavour: str = "auto"
    compute_capabilities: tuple[str, ...] = ()
    max_batch: int = 4
    max_seq: int | None = None
    opt_batch: int = 1
    opt_past: int = 256
    opt_new: int = 64
    refit: bool = False
    refit_from: Path | None = None
    workspace_mb: int | None = None
    timing_cache: Path | None = None


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
        raise ExportError(f"--trt {options.flavour} is not known", f"allowed: {', '.join(CHOICES)}")
    for capability in options.compute_capabilities:
        if not re.fullmatch(r"[1-9]\d?\.\d", capability):
            raise ExportError(
                f"--compute-capability {capability} is not one such as 8.9",
                f"give a list such as {','.join(DEFAULT_CAPABILITIES)}",
            )
    if not 1 <= options.max_batch <= MAX_BATCH:
        raise ExportError(f"--max-batch {options.max_batch} is outside 1..{MAX_BATCH}")
    max_seq = options.max_seq
    if max_seq is None:
        max_seq = min(DEFAULT_MAX_SEQ, max_positions)
    least = min(_recorded_tokens(whole_prompt), max_positions)
    if not least <= max_seq <= max_positions:
        raise ExportError(
            f"--max-seq {max_seq} is outside {least}..{max_positions}: the recorded cases that "
            f"`ouro check` replays have {least} tokens, the model has {max_positions} positions"
        )
    if options.workspace_mb is not None and options.workspace_mb < 1:
        raise ExportError(f"workspace of {options.workspace_mb} MiB", "allowed: 1 or more")
    if options.timing_cache is not None:
        if options.refit_from is not None:
            raise ExportError(
                "--timing-cache: --refit-from builds nothing", "leave one of them out"
            )
        _check_writable(options.timing_cache)
    return max_seq


def _check_writable(file: Path) -> None:
    """Refuses a file that could not be written once a build of minutes is done."""
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ExportError(
            f"--timing-cache {file} is a directory, or its directory is not there", "give a file"
        )
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise ExportError(f"--timing-cache {file} may not be written", "give another file")


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
            f"--compute-capability {','.join(asked)}: {flavour.title} builds only for the GPU it "
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
    past = -(-max_seq // BUCKET) * BUCKET
    chunk = past if whole_prompt else min(past, PREFILL_CHUNK)
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
