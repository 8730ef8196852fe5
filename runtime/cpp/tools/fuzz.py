"""Runs the fuzz programs of runtime/cpp/tests/fuzz, from inputs that the tests already have.

    make cpp-fuzz FUZZ_SECONDS=1200
    python -m runtime.cpp.tools.fuzz [--seconds 60] [--build build/cpp/fuzz] [NAME ...]

What a program found worth keeping stays in BUILD/corpus/NAME, and the next run goes on from there.
An input that it failed on is written to BUILD/findings/NAME-*: once mended, it goes to
tests/vectors/fuzz/NAME, where every build replays it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from safetensors.numpy import save

from tests.support.tokenizer_changes import changed

ROOT = Path(__file__).resolve().parents[3]
VECTORS = ROOT / "tests/vectors"
HARNESSES = ROOT / "runtime/cpp/tests/fuzz"
TOKENS = ROOT / "runtime/cpp/tests/text/tokens.json"
LONGEST_WORD = 40  # bytes of a word that the fuzzer may put in


@dataclass(frozen=True)
class Fuzzed:
    """What a program did.

    Attributes:
        name: of its harness.
        runs: inputs tried.
        kept: inputs in its corpus afterwards.
        findings: files of the inputs that it failed on.
        ended: its exit status, 0 unless it failed.
        last: the last lines that it wrote.
    """

    name: str
    runs: int
    kept: int
    findings: tuple[Path, ...]
    ended: int
    last: str


def main() -> int:
    """Prints what each program did; returns the exit status."""
    names = sorted(path.stem for path in HARNESSES.glob("*.cpp"))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(names)}")
    parser.add_argument("--seconds", type=int, default=60, help="of each program")
    parser.add_argument("--build", type=Path, default=ROOT / "build/cpp/fuzz")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(names)):
        parser.error(f"no fuzz program {', '.join(unknown)}; there are {', '.join(names)}")
    if given.seconds < 1:
        parser.error(f"--seconds {given.seconds} is not allowed; give 1 or more")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        todo = given.names or names
        done = list(pool.map(lambda name: fuzz(name, given.build, given.seconds), todo))
    for one in done:
        verdict = f"{len(one.findings)} findings" if one.findings else "nothing found"
        print(f"{one.name}: {one.runs:,} runs, {one.kept:,} inputs kept, {verdict}")
        for path in one.findings:
            print(f"  {path}")
        if one.ended:
            print(one.last)
    return int(any(one.ended or one.findings for one in done))


def fuzz(name: str, build: Path, seconds: int) -> Fuzzed:
    """Runs one program for `seconds`."""
    corpus, findings = build / "corpus" / name, build / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for content in seeds(name):
        (corpus / hashlib.sha256(content).hexdigest()).write_bytes(content)
    options = [f"-max_total_time={seconds}", "-print_final_stats=1"]
    options.append(f"-artifact_prefix={findings}/{name}-")
    if words := dictionary(name):  # an empty one is refused
        (build / f"{name}.dict").write_text("".join(f"{word}\n" for word in sorted(words)))
        options.append(f"-dict={build / name}.dict")
    before = set(findings.iterdir())
    done = subprocess.run(
        [build / f"tests/fuzz_{name}", *options, corpus], capture_output=True, check=False
    )
    said = done.stderr.decode(errors="replace")
    runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
    return Fuzzed(
        name,
        int(runs[1]) if runs else 0,
        sum(1 for _ in corpus.iterdir()),
        tuple(sorted(p for p in set(findings.iterdir()) - before if p.name.startswith(name))),
        done.returncode,
        "\n".join(said.splitlines()[-40:]),
    )


def seeds(name: str) -> Iterator[bytes]:
    """Yields the inputs that a program begins with."""
    for path in sorted((VECTORS / "fuzz" / name).glob("*")):
        yield path.read_bytes()
    if name == "manifest":
        yield from (json.dumps(one).encode() for one in _manifests())
    elif name == "tokenizer":
        yield from (json.dumps(one).encode() for one in _tokenizers())
    elif name == "text":
        for family in json.loads(TOKENS.read_text()).values():
            yield from (bytes.fromhex(one["bytes"]) for one in family["texts"])
    elif name == "safetensors":
        arrays: dict[str, np.ndarray] = {
            "a": np.arange(6, dtype=np.float32).reshape(2, 3),
            "b": np.zeros(0, np.int64),
        }
        yield save(arrays, {"cases": "1"})
        yield save({})
    elif name == "graph":
        yield _graph().SerializeToString()


def dictionary(name: str) -> set[str]:
    """Returns the words of the JSON that a program reads, as libFuzzer's dictionaries have them."""
    read = {"manifest": _manifests, "tokenizer": _tokenizers}
    found: set[str] = set()

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                found.add(json.dumps(key))
                collect(value)
        elif isinstance(part, list):
            for value in part:
                collect(value)
        else:
            found.add(json.dumps(part))

    for part in read[name]() if name in read else ():
        collect(part)
    # A dictionary quotes a word in its own way: every byte may be given as two digits.
    return {
        f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word.encode())}"'
        for word in found
        if len(word) <= LONGEST_WORD
    }


def _manifests() -> Iterator[Any]:
    vectors = json.loads((VECTORS / "manifests.json").read_text())
    yield vectors["manifest"]
    for case in vectors["cases"]:
        yield changed(vectors["manifest"], (tuple(case["keys"]), case["value"]))


def _tokenizers() -> Iterator[Any]:
    for file in ("tokenizers.json", "streams.json"):
        yield from json.loads((VECTORS / file).read_text())["tokenizers"].values()
    for family in json.loads(TOKENS.read_text()).values():
        yield family["tokenizer"]


def _graph() -> onnx.ModelProto:
    """A graph whose weights lie in two files, one of them read in the body of a loop."""

    def tensor(name: str, file: str) -> onnx.TensorProto:
        found = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[4])
        found.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", file), ("offset", "0"), ("length", "16")):
            found.external_data.add(key=key, value=value)
        return found

    body = helper.make_graph(
        [helper.make_node("Add", ["h", "w"], ["out"])], "body", [], [], [tensor("w", "body.data")]
    )
    loop = helper.make_node("Loop", ["depth", "", "x"], ["y"], body=body)
    constant = helper.make_node("Constant", [], ["c"], value=tensor("c", "model.data"))
    graph = helper.make_graph([loop, constant], "graph", [], [], [tensor("v", "model.data")])
    return helper.make_model(graph)


if __name__ == "__main__":
    sys.exit(main())
