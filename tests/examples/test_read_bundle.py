"""The reader that was written from docs/bundle.md alone finds the engine's tokens."""

from __future__ import annotations

import ast
import hashlib
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from runtime import Engine
from tests.support.paths import ROOT

READER = ROOT / "examples" / "read_bundle.py"


def read(bundle: Path, depth: int, ids: list[int]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(READER), str(bundle), str(depth), "12", *map(str, ids)]
    # In a directory of its own, so that nothing of ours is found beside it.
    return subprocess.run(
        command, capture_output=True, text=True, cwd=bundle.parent, timeout=120, check=False
    )


def rewrite_manifest(bundle: Path, change: dict[str, object]) -> None:
    """Changes keys of a manifest, and the hash with it."""
    manifest = json.loads((bundle / "manifest.json").read_text()) | change
    text = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    (bundle / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


@pytest.mark.filterwarnings("ignore:depth 5 was never trained")
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_it_finds_the_tokens_of_the_engine(engine: Engine, tiny_bundle: Path, depth: int) -> None:
    prompt = engine.tokenize("The sea is wide")
    wanted = engine.generate(prompt, depth=depth, max_new_tokens=12).tokens
    first = len(engine.manifest.tokenizer.prefix_token_ids)
    done = read(tiny_bundle, depth, prompt[first:])
    assert done.stderr == ""
    assert [int(one) for one in done.stdout.split()] == list(wanted)


def test_it_reads_a_model_with_a_halter(halting_bundle: Path) -> None:
    with Engine.open(halting_bundle, backend="cpu", threads=1) as engine:
        wanted = engine.generate([7, 8, 9], depth=3, max_new_tokens=12).tokens
    done = read(halting_bundle, 3, [7, 8, 9])
    assert done.stderr == ""
    assert [int(one) for one in done.stdout.split()] == list(wanted)


def test_it_reads_a_block_of_layers(block_bundle: Path) -> None:
    with Engine.open(block_bundle, backend="cpu", threads=1) as engine:
        wanted = engine.generate([7, 8, 9], depth=2, max_new_tokens=12).tokens
    done = read(block_bundle, 2, [7, 8, 9])
    assert done.stderr == ""
    assert [int(one) for one in done.stdout.split()] == list(wanted)


@pytest.mark.parametrize("level", [1, 4])
def test_it_computes_as_precisely_as_the_engine(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    # Left to itself ONNX Runtime takes level 4, and rounded bundles are made for 1.
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    rewrite_manifest(copy, {"quantization": {"accuracy_level": level}})
    asked = []

    def open_session(file: str, options: onnxruntime.SessionOptions) -> None:
        key = "session.qdq_matmulnbits_accuracy_level"
        asked.append(options.get_session_config_entry(key))
        raise InterruptedError

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    with pytest.raises(InterruptedError):
        runpy.run_path(str(READER))["generate"](copy, [5], 1, 1)
    assert asked == [str(level)]


def test_it_is_a_hundred_lines_of_standard_library() -> None:
    text = READER.read_text()
    assert len(text.splitlines()) <= 100
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
    imported = {alias.name for node in nodes for alias in node.names}
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime"}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("manifest.json", "not the one that manifest.sha256"),
        ("model.onnx.data", "model.onnx.data is damaged"),
        ("tokenizer.json", "tokenizer.json is missing"),
    ],
)
def test_it_refuses_what_is_damaged(
    tiny_bundle: Path, tmp_path: Path, file: str, words: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    if "missing" in words:
        (copy / file).unlink()
    else:
        data = bytearray((copy / file).read_bytes())
        place = data.index(b'"fp32"') + 1 if file == "manifest.json" else len(data) // 2
        data[place] ^= 1
        (copy / file).write_bytes(data)
    done = read(copy, 1, [5])
    assert done.returncode == 1
    assert words in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise": 1}, "lacks or adds ['surprise']"),
        ({"files": {}}, "files without a hash: ['model.onnx', 'model.onnx.data']"),
        ({"precision": "bf16"}, "a bundle in bf16 is for GPUs"),
    ],
)
def test_it_refuses_what_the_page_says(
    tiny_bundle: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    rewrite_manifest(copy, change)
    done = read(copy, 1, [5])
    assert done.returncode == 1
    assert words in done.stderr
