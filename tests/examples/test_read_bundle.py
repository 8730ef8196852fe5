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
    write_manifest(bundle, json.dumps(manifest).encode())


def write_manifest(bundle: Path, text: bytes) -> None:
    """Writes the bytes of a manifest, and their hash."""
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


def refused(bundle: Path) -> str:
    """The one line that it ends with; in this process, since a start takes a second and more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(READER), str(bundle), "1", "12", "5"])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(READER), run_name="__main__")
    line = str(caught.value.code)
    assert "\n" not in line
    return line


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
        ("tokenizer.json", "'tokenizer.json' is missing"),
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
    assert words in refused(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise": 1}, "lacks or adds ['surprise']"),
        ({"files": {}}, "files without a hash: ['model.onnx', 'model.onnx.data']"),
        ({"precision": "bf16"}, "bf16 is for GPUs"),
        ({"format_version": 3}, "format_version 3 is not 4"),
        ({"format_version": 4.0}, "format_version 4.0 is not 4"),
        ({"format_version": "4"}, 'format_version "4" is not 4'),
    ],
)
def test_it_refuses_what_the_page_says(
    tiny_bundle: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    rewrite_manifest(copy, change)
    assert words in refused(copy)


@pytest.mark.parametrize("text", [b"{", b"[]", b"4", b"\xff", b"[" * 100_000])
def test_it_says_in_one_line_what_is_no_manifest(
    tiny_bundle: Path, tmp_path: Path, text: bytes
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    write_manifest(copy, text)
    assert "manifest.json is no object of JSON: " in refused(copy)
    (copy / "manifest.sha256").unlink()
    assert "manifest.sha256" in refused(copy)


@pytest.mark.parametrize("text", [b"{", b'{"format_version": 3}', b""])
def test_it_believes_nothing_before_the_hash(
    tiny_bundle: Path, tmp_path: Path, text: bytes
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    (copy / "manifest.json").write_bytes(text)
    assert "not the one that manifest.sha256" in refused(copy)


@pytest.mark.parametrize(
    "name",
    ["a/../x", "c:d", "a\\b", "*", "./x", "a//x", "a/", "a/./x", "x\t", "", "..", "/x", "link"],
)
def test_it_refuses_names_that_the_page_refuses(
    tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    content = b"whole"
    (copy / "a").mkdir()
    (tmp_path / "outside").write_bytes(content)
    (copy / "link").symlink_to(tmp_path / "outside")
    for file in ("x", "a/x", "a..b", "a/y"):
        (copy / file).write_bytes(content)
    if not (copy / name).exists():
        (copy / name.lstrip("/")).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    plain = manifest["files"] | {"x": entry, "a/y": entry, "a..b": entry}
    rewrite_manifest(copy, {"files": plain})
    assert runpy.run_path(str(READER))["open_bundle"](copy)["files"] == plain
    rewrite_manifest(copy, {"files": plain | {name: entry}})
    assert f"{name!r} is missing, or no path of a file in the bundle" in refused(copy)


def test_its_graph_reaches_no_file_that_is_not_listed(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    graph, files, other = manifest["graphs"]["onnx"], manifest["files"], "model.onnx.datb"
    changed = (copy / "model.onnx").read_bytes().replace(b"model.onnx.data", other.encode())
    (copy / "model.onnx").write_bytes(changed)
    files["model.onnx"]["sha256"] = hashlib.sha256(changed).hexdigest()
    shutil.copy(copy / "model.onnx.data", copy / other)
    rewrite_manifest(copy, {"files": files})
    done = read(copy, 1, [5])
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert other in line
    files[other] = files["model.onnx.data"]
    rewrite_manifest(copy, {"files": files})
    assert other in refused(copy)  # listed, but not as the graph's
    rewrite_manifest(copy, {"files": files, "graphs": {"onnx": graph | {"data": [other]}}})
    done = read(copy, 1, [5])
    assert done.stderr == ""
    assert done.stdout == read(tiny_bundle, 1, [5]).stdout
