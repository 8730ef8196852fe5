"""Bundles, whole and damaged: C++ takes what Python takes, and refuses the rest in its words."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.backends import ort
from runtime.bundle import contract, open_bundle
from runtime.bundle.manifest import parse_manifest_text, render_hash
from runtime.bundle.plans import hash_graph
from runtime.errors import BundleError, OuroError
from runtime.files.hashing import hash_file
from runtime.parity.cases import load_cases
from tests.support.cpp import built
from tests.support.manifests import FIELDS, WRONG

Verdict = str | list[Any]
Judge = Callable[[str, Path], Verdict]

FILES = {
    name: {"sha256": "0" * 64, "bytes": 1}
    for name in ("model.onnx", "model.onnx.data", "tokenizer.json", "one.plan")
}
PLAIN: dict[str, Any] = {"format_version": 4, **FIELDS, "files": FILES}
# Values that stand in the place of others: bounds, and what Python writes in its own way.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 4, 8, 16, 32, 64, 4096, 4097, 2**31 - 1, 2**31, 2**53),
    *(2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30, 10**31, 10**100),
    *(-(10**400), 0.0, -0.0, 1.0, 0.5, 1.5, 1e16, 1e15, 123456789.5, 1e-5, 1e-4, 1.234e-4, 1e22),
    *(5e-324, 1.7976931348623157e308, "", "a", "\n", "\x7f", "\x85", "é", "\U0001f600", "\ud800"),
    *("it's", 'it\'s "q"', "\\", "\u200b", "\xa0", "\ufeff", "\U000e0001", "/x", "../x", "a/../b"),
    *(
        "a/./b",
        "a//b",
        "a/",
        "./a",
        "C:x",
        "a*",
        "x" * 70,
        "é" * 70,
        "fp16",
        "int8",
        "mean",
        "exit",
    ),
    *("distance", "rtn", "gptq", "f" * 64, "model.onnx", "manifest.json", "one.plan", "batch"),
    *("3 * slots", [], [1], [-1], [10**30], [1, [2]], {}, {"a": {"b": [1, 2.5, {"c": None}]}}),
]
BROKEN = [
    *(b"", b" ", b"{", b"[1,]", b'{"a" 1}', b'{"a":1,"a":2}', b"nul", b"NaN", b"-Infinity", b"-"),
    *(b"01", b"1.", b"1e+", b"-0", b"1e400", b"1e-400", b"0e99999999999", b"9" * 4300, b"9" * 4301),
    *(
        b'"a',
        b'"\\q"',
        b'"\\u12"',
        b'"\\u1234',
        b'"\\ud800\\udc00"',
        b'"\\ud800\\u12g4"',
        b'"a\nb"',
    ),
    *(
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b"\xff",
        b'"\xe2\x82"',
        b'"\xed\xa0\x80"',
        b'"\xf0\x9f\x98',
        b"[,]",
    ),
    *('{"é": 3}'.encode(code) for code in ("utf-16", "utf-16-be", "utf-32", "utf-32-le")),
    *(
        b"[\x00",
        b"[\x00]",
        b"\xff\xfe[\x00x",
        b"[\x00\x00\x00]\x00\x00\x11",
        b"[" * 500 + b"]" * 500,
    ),
    *(b"[" * 100_000, b'{"a":' * 100_000, b'{"format_version": [1, {"b": null}, 1e999]}'),
]
SNIPPETS = (b"{", b"}", b"[", b"]", b'"', b",", b":", b"0", b"-", b".", b"e", b"\\", b"\xc3\xa9")


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    """The verdict of C++."""
    with subprocess.Popen(
        [built("judge_bundles")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(command: str, path: Path) -> Verdict:
            assert process.stdin is not None
            assert process.stdout is not None
            print(command, path, file=process.stdin, flush=True)
            line = process.stdout.readline()
            assert line, f"the program ended at {command} {path}"
            found: Verdict = json.loads(line)
            return found

        yield ask
        process.stdin.close()


def judge_here(command: str, path: Path) -> Verdict:
    """The verdict of Python."""
    try:
        if command == "json":
            parse_manifest_text(path.read_bytes())
        elif command == "cases":
            load_cases(path)
        else:
            bundle = open_bundle(path)
            if command == "names":
                onnx = bundle.manifest.graphs.onnx
                ort._check_data(bundle.file(onnx.file), bundle.manifest)
    except OuroError as error:
        return [error.code, error.problem, error.cure]
    return "ok"


def alike(one: Verdict, other: Verdict) -> bool:
    """Whether two verdicts say the same, where Python's own words are those of 3.11."""
    if isinstance(one, str) or isinstance(other, str) or sys.version_info < (3, 12):
        return one == other
    own = re.compile(r"( is not JSON|cannot read .*?): .*")
    return [own.sub(r"\1", str(part)) for part in one] == [
        own.sub(r"\1", str(part)) for part in other
    ]


def make_full() -> dict[str, Any]:
    """A manifest that has what a manifest can have."""
    full = copy.deepcopy(PLAIN)
    full["model"] |= {"halting": True, "recurrent_layers": 3}
    full["depth"]["halting"] = {"kind": "trained", "threshold": 0.5, "max": 3}
    full["precision"] = "int8"
    full["quantization"] = {
        **{"bits": 8, "sensitive_bits": 8, "block": 32, "symmetric": True, "method": "rtn"},
        **{"calibration": None, "accuracy_level": 1},
    }
    around = {"before": "\n", "strip": "none", "after": "", "skip_empty": False}
    full["tokenizer"]["chat"] = {
        **{"begin": "", "default_system": "a\n", "order": "alternating"},
        "roles": {name: {**around, "last": None, "answer": "x"} for name in ("user", "assistant")},
        "fold": {**around, "into": "first", "strip": "both", "joined": True},
    }
    sizes = SimpleNamespace(**full["model"])
    graph = full["graphs"]["onnx"]
    graph["inputs"] = [dataclasses.asdict(one) for one in contract.inputs(sizes, "int8")]
    graph["outputs"] = [dataclasses.asdict(one) for one in contract.outputs(sizes, "int8")]
    shape = {"name": "input_ids", "min": [1, 1], "opt": [1, 2], "max": [3, 4]}
    profile = {
        "name": "decode",
        "shapes": [shape],
        "values": [{"name": "depth", "min": [1], "opt": [2], "max": [4]}],
    }
    full["plans"] = [
        {
            **{"file": "one.plan", "flavour": "tensorrt", "version": "10", "cuda": "13"},
            **{"compute_capabilities": ["8.9"], "precision": "int8", "refittable": False},
            "graph_sha256": hash_graph({name: FILES[name]["sha256"] for name in list(FILES)[:2]}),
            **{"profiles": [profile], "max_new_tokens": 5, "max_logits": 6},
        }
    ]
    return full


def list_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value within one."""
    named = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in named:
        yield (*place, key)
        if isinstance(inner, dict | list):
            yield from list_places(inner, (*place, key))


def put(data: dict[str, Any], place: tuple[Any, ...], value: Any) -> bytes:
    """The text of a manifest with another value in one place, or none where it is `...`."""
    changed = json.loads(json.dumps(data))
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return json.dumps(changed).replace("Infinity", "1e999").encode()


def damage(generator: random.Random, content: bytes) -> bytes:
    """Some bytes flipped, put in, replaced or taken out, or the end cut off."""
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        at = generator.randrange(len(changed) + 1)
        kind = generator.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            changed[at:at] = generator.randbytes(generator.randrange(1, 4))
        elif kind == 2:
            changed[at:at] = generator.choice(SNIPPETS)
        elif kind == 3:
            changed[at : at + 1] = generator.choice(SNIPPETS)
        elif kind == 4:
            del changed[at : at + generator.randrange(1, 5)]
        elif generator.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def test_manifests_are_read_alike(judge: Judge, tmp_path: Path) -> None:
    full, generator, file = make_full(), random.Random(1), tmp_path / "manifest.json"
    texts = [json.dumps(PLAIN).encode(), json.dumps(full).encode()]
    assert [judge_text(judge, file, text) for text in texts] == ["ok", "ok"]
    texts += [put(PLAIN, place, value) for place, value, _ in WRONG]
    texts += [put(full, place, ...) for place in list_places(full)]
    changes = [(place, value) for place in list_places(full) for value in VALUES]
    texts += [put(full, place, value) for place, value in generator.sample(changes, 2500)]
    indented = json.dumps(full, indent=2).encode()
    texts += [damage(generator, indented) for _ in range(1000)]
    found = [judge_text(judge, file, text) for text in (*texts, *BROKEN)]
    assert len({str(one) for one in found}) > 800
    assert 100 < found.count("ok") < 1500


def judge_text(judge: Judge, file: Path, text: bytes) -> Verdict:
    file.write_bytes(text)
    expected = judge_here("json", file)
    assert alike(judge("json", file), expected), text[:200]
    return expected


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a manifest and makes its hash right again."""
    data = json.loads((bundle / "manifest.json").read_bytes())
    change(data)
    seal(bundle, json.dumps(data).encode())


def seal(bundle: Path, manifest: bytes) -> None:
    (bundle / "manifest.json").write_bytes(manifest)
    (bundle / "manifest.sha256").write_bytes(render_hash(manifest))


def list_again(bundle: Path, name: str) -> None:
    """Writes a file's hash and size into the manifest."""
    file = bundle / name
    entry = {"sha256": hash_file(file), "bytes": file.stat().st_size}
    rewrite(bundle, lambda data: data["files"].update({name: entry}))


def damage_manifest(generator: random.Random, bundle: Path) -> str:
    seal(bundle, damage(generator, (bundle / "manifest.json").read_bytes()))
    return "open"


def damage_value(generator: random.Random, bundle: Path) -> str:
    data = json.loads((bundle / "manifest.json").read_bytes())
    place = generator.choice(list(list_places(data)))
    seal(bundle, put(data, place, generator.choice([*VALUES, ...])))
    return "names"


def damage_file(generator: random.Random, bundle: Path) -> str:
    file = generator.choice(sorted(path for path in bundle.rglob("*") if path.is_file()))
    file.write_bytes(damage(generator, file.read_bytes()))
    return "open"


def damage_graph(generator: random.Random, bundle: Path) -> str:
    file = bundle / "model.onnx"
    content = file.read_bytes()
    # Where names of files stand is the graph's least part.
    places = [at for at in range(len(content)) if content.startswith(b"location", at)]
    at = max(0, generator.choice(places) + generator.randrange(-40, 60))
    content = content[:at] + damage(generator, content[at : at + 30]) + content[at + 30 :]
    file.write_bytes(damage(generator, content) if generator.random() < 0.3 else content)
    list_again(bundle, "model.onnx")
    return "names"


def swap_files(generator: random.Random, bundle: Path) -> str:
    one, two = generator.sample(sorted(path for path in bundle.rglob("*") if path.is_file()), 2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    return "open"


def replace_file(generator: random.Random, bundle: Path) -> str:
    """Puts a link, a directory or nothing in the place of a file."""
    file = generator.choice(sorted(path for path in bundle.rglob("*") if path.is_file()))
    aside, kind = bundle / "aside", generator.randrange(8)
    file.rename(aside)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        file.symlink_to(
            generator.choice(["aside", aside, "./aside", "../" + bundle.name + "/aside"])
        )
    elif kind == 2:
        file.symlink_to(generator.choice(["nothing", "/nothing", "../nothing", "aside/deeper"]))
    elif kind == 3:
        file.symlink_to(file.name)
    elif kind == 4:
        file.symlink_to("round")
        (bundle / "round").symlink_to("about")
        (bundle / "about").symlink_to("round")
    elif kind == 5:
        os.link(aside, file)
    elif kind == 6:
        shutil.copy(aside, bundle.parent / "outside")
        file.symlink_to("../outside")
    return "names"


KINDS = {
    damage_manifest: 350,
    damage_value: 250,
    damage_file: 150,
    damage_graph: 150,
    swap_files: 40,
    replace_file: 60,
}


def test_damaged_bundles_are_refused_alike(judge: Judge, tiny_bundle: Path, tmp_path: Path) -> None:
    generator, verdicts = random.Random(14), Counter[str]()
    assert sum(KINDS.values()) == 1000
    for kind, count in KINDS.items():
        refused = set()
        for number in range(count):
            bundle = tmp_path / f"{kind.__name__}{number}"
            shutil.copytree(tiny_bundle, bundle)
            command = kind(generator, bundle)
            expected = judge_here(command, bundle)
            assert alike(judge(command, bundle), expected), f"{kind.__name__} {number}"
            verdicts["refused" if isinstance(expected, list) else "taken"] += 1
            if isinstance(expected, list):
                assert expected[0] == BundleError.code
                refused.add(expected[1].replace(bundle.name, ""))
            shutil.rmtree(bundle)
        assert len(refused) > 3, f"{kind.__name__} says little"
    assert verdicts["refused"] > 800
    assert verdicts["taken"] > 20


def test_places_that_hold_no_bundle(judge: Judge, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/manifest.json").write_text('{"format_version": 3}')
    for name in ("none", "file", "file/deeper", "empty", "bare", "./bare/", "bare//.", "é'"):
        path = Path(f"{tmp_path}/{name}")
        expected = judge_here("open", path)
        assert isinstance(expected, list)
        assert judge("open", path) == expected


def test_damaged_cases_are_refused_alike(judge: Judge, tiny_bundle: Path, tmp_path: Path) -> None:
    content, generator = (tiny_bundle / "cases.safetensors").read_bytes(), random.Random(2)
    end, file, found = (
        8 + int.from_bytes(content[:8], "little"),
        tmp_path / "cases",
        Counter[bool](),
    )
    assert judge("cases", tiny_bundle / "cases.safetensors") == "ok"
    for _ in range(400):
        at = generator.choice([0, 8, generator.randrange(end)])
        part = damage(generator, content[at : at + 40])
        file.write_bytes(content[:at] + part + content[at + 40 :])
        expected = judge_here("cases", file)
        refused = isinstance(expected, list) and "cannot be read" in expected[1]
        verdict = judge("cases", file)
        assert isinstance(verdict, list) == refused, (expected, verdict)
        if refused:
            assert verdict[0] == BundleError.code
            assert verdict[1].startswith(f"{file} cannot be read: ")
        found[refused] += 1
    assert min(found.values()) > 20
