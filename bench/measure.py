"""Two things measured in turn within one run."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.measure.speed import DecodeTiming

PACKAGES = ("torch", "transformers", "onnx")
"""Whose versions matter beside those of the runtime, for `describe_machine`."""


def make_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A script's parser: its docstring's first line says what it does, the rest how to call it.

    Args:
        module: as `python -m` takes it.
        doc: the module's docstring.
    """
    summary, _, details = (doc or "").partition("\n")
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def print_machine(machine: dict[str, Any], more: str = "") -> None:
    """Prints what was measured on: two lines, from `describe_machine`.

    Args:
        machine: what it returned.
        more: stands behind the versions.
    """
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}")
    print(f"{versions}{more}")


class Child:
    """A process that answers each line it is sent with one of JSON; it sends one first, once ready.

    Args:
        words: of its command.
        ended: raised where it ends before it has answered.
        environment: its variables; None for those of this process.
    """

    def __init__(
        self, words: Sequence[str], ended: Exception, environment: dict[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._ended = ended
        self._read()

    def ask(self, line: str) -> dict[str, Any]:
        """Sends a line, returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Sends no more, and waits for its end."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise self._ended
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure_in_turn(
    subjects: dict[str, Callable[[], Sequence[float]]], rounds: int
) -> dict[str, float]:
    """Medians of what each subject returns, the subjects taking turns.

    Args:
        subjects: each runs once and returns the seconds of its tokens.
        rounds: turns for each; one more comes first and does not count.
    """
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(rounds + 1):
        for name, run in subjects.items():
            times = run()
            if turn:
                samples[name].extend(times)
    return {name: statistics.median(times) for name, times in samples.items()}


def time_torch(model: Any, depth: int, batch: int, context: int, tokens: int) -> DecodeTiming:
    """Times greedy decoding of a batch of random prompts, PyTorch eager with its own cache.

    Every time includes the wait for the GPU.

    Args:
        model: from `load_checkpoint`, on its device and in its type.
        depth: recurrences.
        batch: rows.
        context: random tokens fed first.
        tokens: tokens decoded and timed one by one.
    """
    import torch

    from ouroboros.model.cache import CACHE

    device = next(model.parameters()).device
    size = (batch, context)
    prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, size)
    ids = torch.from_numpy(prompts).to(device)
    options: dict[str, Any] = {"use_cache": True, "depth": depth, "logits_to_keep": 1}

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    with torch.inference_mode():
        start = wait()
        output = model(input_ids=ids, **options)
        prefill_s = wait() - start
        seconds = []
        for _ in range(tokens):
            start = wait()
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            output = model(input_ids=token, past_key_values=output[CACHE], **options)
            seconds.append(wait() - start)
    seconds = seconds[2:] if tokens > 4 else seconds
    return DecodeTiming(seconds, list(seconds), prefill_s)


def time_process(*command: str, repeats: int = 7) -> float:
    """Median seconds a command takes from start to end."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def time_startup() -> dict[str, float]:
    """Seconds of `ouro --help`, of `import runtime` and of loading the engine's module."""
    python = sys.executable
    return {
        "ouro_help_s": time_process(str(Path(python).parent / "ouro"), "--help"),
        "import_runtime_s": time_process(python, "-c", "import runtime"),
        "import_engine_s": time_process(python, "-c", "from runtime import Engine"),
    }


def resident_bytes() -> int:
    """Memory this process holds now (Linux only)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_memory(engine: Any, depth: int, sequences: int, tokens: int) -> dict[str, Any]:
    """Resident memory after each of several sequences; the first two warm up.

    Args:
        engine: an open bundle.
        depth: recurrences.
        sequences: how many, one after the other.
        tokens: tokens decoded in each.
    """
    from runtime.measure.speed import time_decode

    resident = []
    for _ in range(sequences):
        time_decode(engine, depth, 64, tokens)
        resident.append(resident_bytes())
    start = min(2, sequences) - 1
    return {
        "tokens": sequences * tokens,
        "sequences": sequences,
        "resident_mb": [round(one / 1e6, 1) for one in resident],
        "growth_mb": round((resident[-1] - resident[start]) / 1e6, 1),
    }
