"""The C++ library against Python's engine: the same bundle, in turn, in processes of their own.

python -m bench.cpp build/demo/bundle --json bench/results/cpp-cpu.json

Both decode with the same ONNX Runtime. The start is that of a process from its first instruction to
the first token of a prompt of 8 tokens; the least it can be is hashing the bundle's files and
creating ONNX Runtime's session, which a third process does alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import PACKAGES, make_parser
from runtime.measure.speed import describe_machine

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "The sea is wide and the ships are"  # 8 tokens
# What no engine can do without, timed within the process: Python's own start is not counted.
LEAST = """
import hashlib, json, sys, time
from pathlib import Path
from runtime.backends.ort_library import load_onnxruntime
onnxruntime = load_onnxruntime()
folder, threads = Path(sys.argv[1]), int(sys.argv[2])
start = time.perf_counter()
for name in json.loads((folder / "manifest.json").read_text())["files"]:
    with (folder / name).open("rb") as file:
        hashlib.file_digest(file, "sha256")
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = threads
onnxruntime.InferenceSession(str(folder / "model.onnx"), options, ["CPUExecutionProvider"])
print(time.perf_counter() - start)
"""
GENERATE = """
import sys
from runtime import Engine
with Engine.open(sys.argv[1], backend="cpu", threads=int(sys.argv[2])) as engine:
    engine.generate(sys.argv[3], depth=int(sys.argv[4]), max_new_tokens=int(sys.argv[5]))
"""


def run_process(command: Sequence[str | Path]) -> tuple[float, float, str]:
    """Seconds that a command takes, the most memory in MB that it held, and what it printed."""
    words = [str(word) for word in command]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(f"error: {' '.join(words[:3])} ended with {process.returncode}")
        out.seek(0)
        return seconds, usage.ru_maxrss / 1000, out.read().decode()


def measure(cli: Path, bundle: Path, depth: int, threads: int, rounds: int) -> dict[str, Any]:
    """Medians of every figure, the two languages taking turns.

    Args:
        cli: `ouro-cli`.
        bundle: of any precision that the CPU runs.
        depth: recurrences.
        threads: inside an operator.
        rounds: turns of each; one more comes first and does not count.
    """
    samples: dict[str, list[float]] = {}
    commands = make_commands(cli, bundle, depth, threads)
    with tempfile.TemporaryDirectory() as name:
        written = Path(name) / "bench.json"
        for turn in range(rounds + 1):
            found: dict[str, float] = {}
            for language, command in commands["bench"].items():
                run_process([*command, "--json", written])
                (row,) = json.loads(written.read_text())["rows"]
                found[f"{language}_tokens_per_s"] = row["tokens_per_s"]
                found[f"{language}_prefill_tokens_per_s"] = row["prefill_tokens_per_s"]
                found[f"{language}_overhead"] = row["engine_overhead"]
            for language, command in commands["first"].items():
                found[f"{language}_first_token_s"] = run_process(command)[0]
            for language, command in commands["long"].items():
                found[f"{language}_resident_mb"] = run_process(command)[1]
            found["least_start_s"] = float(run_process(commands["least"]["python"])[2])
            if turn:
                for key, value in found.items():
                    samples.setdefault(key, []).append(value)
    return {key: statistics.median(values) for key, values in samples.items()}


def make_commands(
    cli: Path, bundle: Path, depth: int, threads: int
) -> dict[str, dict[str, list[str | Path]]]:
    """What is run for each figure, by language."""
    ouro = Path(sys.executable).parent / "ouro"
    shared: list[str | Path] = ["--depth", str(depth), "--threads", str(threads)]
    bench: list[str | Path] = [
        *shared,
        "--context",
        "64",
        "--tokens",
        "32",
        "--repeats",
        "3",
        "--backend",
        "cpu",
    ]

    def generate(tokens: int) -> dict[str, list[str | Path]]:
        native = ["--max-new-tokens", str(tokens), "--backend", "cpu"]
        python: list[str | Path] = [bundle, str(threads), PROMPT, str(depth), str(tokens)]
        return {
            "cpp": [cli, "run", bundle, PROMPT, *shared, *native],
            "python": [sys.executable, "-c", GENERATE, *python],
        }

    return {
        "bench": {
            "cpp": [cli, "bench", bundle, *bench],
            "python": [ouro, "bench", bundle, *bench],
        },
        "first": generate(1),
        "long": generate(64),
        "least": {"python": [sys.executable, "-c", LEAST, bundle, str(threads)]},
    }


def compare(figures: dict[str, float]) -> dict[str, float]:
    """The ratios that the two languages are held by."""
    return {
        "decode_cpp_over_python": figures["cpp_tokens_per_s"] / figures["python_tokens_per_s"],
        "prefill_cpp_over_python": figures["cpp_prefill_tokens_per_s"]
        / figures["python_prefill_tokens_per_s"],
        "cpp_overhead": figures["cpp_overhead"],
        "first_token_over_least": figures["cpp_first_token_s"] / figures["least_start_s"],
        "resident_mb_less_than_python": figures["python_resident_mb"] - figures["cpp_resident_mb"],
    }


def main() -> None:
    """Runs the script."""
    parser = make_parser("bench.cpp", __doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cli", type=Path, default=ROOT / "build/cpp/release/ouro-cli")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    if not given.cli.exists():
        raise SystemExit(f"error: {given.cli} is not there; run make cpp")
    figures = measure(given.cli, given.bundle, given.depth, given.threads, given.rounds)
    report = {
        "bundle": given.bundle.name, "depth": given.depth, "threads": given.threads,
        "medians": figures, "ratios": compare(figures), "machine": describe_machine(PACKAGES),
    }  # fmt: skip
    for key, value in {**figures, **report["ratios"]}.items():
        print(f"{key:36} {value:10.4f}")
    print(report["machine"])
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
