"""The manifest: every key and value of it, what may not stand there, and who may write it."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle.manifest import (
    check_file_name,
    parse_manifest,
    parse_manifest_text,
)
from runtime.bundle.plans import PlanSpec, ProfileSpec, RangeSpec, hash_graph
from runtime.bundle.reader import hash_file, open_bundle, read_manifest, write_manifest
from runtime.errors import BundleError
from tests.support.manifests import FIELDS, WRONG, changed, read

QUANTIZATION: dict[str, Any] = {
    "bits": 4,
    "sensitive_bits": 8,
    "block": 32,
    "symmetric": True,
    "method": "rtn",
    "calibration": None,
    "accuracy_level": 1,
}


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[1]", b"3", b"{}", b'{"format_version": NaN}', b"[" * 100_000,
     b'{"format_version": 1, "format_version": 1}', b'{"format_version": true}'],
)  # fmt: skip
def test_manifest_rubbish_is_one_line(text: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        parse_manifest_text(text)
    assert "\n" not in str(caught.value)


def test_manifest_newer_version_names_both(bundle: Path) -> None:
    data = changed(bundle, "format_version", value=5)
    data["something_new"] = 1
    with pytest.raises(BundleError, match=r"format_version 5 is not the 4 .*update ouroboros"):
        parse_manifest(data)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_bundle_says_to_export_again(bundle: Path, version: int) -> None:
    data = changed(bundle, "format_version", value=version)
    del data["quantization"]  # version 2 was written without it too
    (bundle / "manifest.json").write_text(json.dumps(data))
    (bundle / "manifest.sha256").unlink()  # that of version 3 stood in the manifest
    with pytest.raises(BundleError, match=rf"version {version} is not the 4 .*export .* again"):
        open_bundle(bundle)


def test_manifest_without_its_data_file_is_refused(bundle: Path) -> None:
    data = read(bundle)
    del data["files"]["model.onnx.data"]
    with pytest.raises(BundleError, match=r"'model.onnx.data' is used but not listed"):
        parse_manifest(data)


def test_manifest_every_key_is_needed_and_no_other_taken(bundle: Path) -> None:
    def walk(node: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        if not isinstance(node, dict):
            return []
        found = [(*path, key) for key in node]
        return found + [deep for key, item in node.items() for deep in walk(item, (*path, key))]

    original = read(bundle)
    for keys in walk(original, ()):
        if keys[0] in ("files", "tools") and len(keys) == 2:
            continue
        data = copy.deepcopy(original)
        inner = data
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        with pytest.raises(BundleError, match=keys[-1]):
            parse_manifest(data)
        if keys[:-1] not in (("files",), ("tools",), ()):
            inner.update({keys[-1]: original, "surprise": 1})
            with pytest.raises(BundleError):
                parse_manifest(data)
    with pytest.raises(BundleError, match=r"unknown key model\.surprise"):
        parse_manifest(changed(bundle, "model", "surprise", value=1))


@pytest.mark.parametrize(("keys", "value", "words"), WRONG)
def test_manifest_wrong_value_is_named(
    bundle: Path, keys: tuple[str, ...], value: Any, words: str
) -> None:
    with pytest.raises(BundleError, match=words):
        parse_manifest(changed(bundle, *keys, value=value))


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\x9b2J", "\x00", "\ud800"])
def test_manifest_text_that_steers_a_terminal_is_refused(bundle: Path, text: str) -> None:
    for keys in (("model", "source"), ("checkpoint", "name"), ("tools", "torch")):
        with pytest.raises(BundleError, match=rf"{keys[-1]} is '.*\\.*control") as caught:
            parse_manifest(changed(bundle, *keys, value=text))
        assert text not in str(caught.value)
    for keys in (("tools", text), ("files", text), (text,)):
        with pytest.raises(BundleError) as caught:
            parse_manifest(changed(bundle, *keys, value="1"))
        assert text not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sensitive_bits": 16}, "sensitive_bits is 16, allowed: 4, 8"),
        ({"block": 0}, "block is 0, allowed: 32, 64, 128"),
        ({"method": "awq"}, "method is 'awq', allowed: rtn, gptq"),
        ({"accuracy_level": 2}, "accuracy_level is 2, allowed: 1, 4"),
        ({"calibration": "0" * 64}, "method rtn has none"),
        ({"method": "gptq"}, "64 lower-case hexadecimal"),
        ({"method": "gptq", "calibration": "F" * 64}, "64 lower-case hexadecimal"),
    ],
)
def test_quantization_that_export_does_not_make_is_refused(
    bundle: Path, changes: dict[str, Any], words: str
) -> None:
    fields = {**copy.deepcopy(FIELDS), "precision": "int4"}
    gptq = {"method": "gptq", "calibration": "0" * 64}
    for allowed in (QUANTIZATION, QUANTIZATION | gptq):
        write_manifest(bundle, **{**fields, "quantization": allowed})
    with pytest.raises(BundleError, match=words):
        write_manifest(bundle, **{**fields, "quantization": QUANTIZATION | changes})


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "C:x", "", ".", "..", "a//b", "a\nb"]
)
def test_bundle_path_traversal_is_refused(bundle: Path, name: str) -> None:
    with pytest.raises(BundleError, match="outside the bundle"):
        check_file_name(name)
    data = read(bundle)
    data["files"][name] = data["files"]["model.onnx"]
    with pytest.raises(BundleError, match=r"outside the bundle|control characters"):
        parse_manifest(data)


def test_write_manifest_leaves_somebodys_manifest_alone(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    for text in ('{"manifest_version": 3}', "[]", "years of work"):
        file.write_text(text)
        with pytest.raises(BundleError, match=r"not a bundle's, so it is left alone"):
            write_manifest(tmp_path, **copy.deepcopy(FIELDS))
        assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


def test_write_manifest_refuses_unknown_and_missing_fields(bundle: Path) -> None:
    fields = copy.deepcopy(FIELDS)
    with pytest.raises(BundleError, match="unknown key surprise"):
        write_manifest(bundle, surprise=1, **fields)
    del fields["tools"]
    with pytest.raises(BundleError, match="lacks the key tools"):
        write_manifest(bundle, **fields)
    assert read_manifest(bundle).tools == {"ouroboros": "0.1.0"}  # the old one stays


def add_plan(bundle: Path, **changes: Any) -> None:
    """Lists a plan, with what is changed; the value None leaves a key out."""
    hashes = {name: hash_file(bundle / name) for name in ("model.onnx", "model.onnx.data")}
    (bundle / "a.plan").write_bytes(b"plan")
    ranges = RangeSpec("past_key_values.0.key", (1, 1, 0, 8), (1, 1, 16, 8), (2, 1, 64, 8))
    profiles = (ProfileSpec("decode", (ranges,), ()),)
    graph = hash_graph(hashes)
    names = ("a.plan", "tensorrt", "10.0", "13", ("8.9",), "fp32", False, graph, profiles)
    entry = dataclasses.asdict(PlanSpec(*names, max_new_tokens=512, max_logits=128)) | changes
    entry = {key: value for key, value in entry.items() if value is not None}
    write_manifest(bundle, **{**copy.deepcopy(FIELDS), "plans": [entry]})


def profile(**changes: Any) -> dict[str, Any]:
    """The profiles of a plan, with what is changed of its one range."""
    one = {"name": "past_key_values.0.key", "min": [1, 1, 0, 8], "opt": [1, 1, 16, 8]}
    one |= {"max": [2, 1, 64, 8], **changes}
    return {"profiles": [{"name": "decode", "shapes": [one], "values": []}]}


def test_plan_entry_round_trip(bundle: Path) -> None:
    add_plan(bundle)
    (plan,) = open_bundle(bundle).manifest.plans
    assert (plan.file, plan.max_new_tokens) == ("a.plan", 512)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_logits": None}, r"lacks the key plans\[0\]\.max_logits"),
        ({"max_logits": 0}, r"a\.plan: max_logits is 0, allowed: 1\.\."),
        ({"max_new_tokens": 2**64}, r"a\.plan: max_new_tokens is 18446744073709551616, allowed"),
        ({"profiles": []}, r"a\.plan has no profile"),
        ({"precision": "fp16"}, r"precision 'fp16', the bundle 'fp32'"),
        ({"file": "model.onnx"}, r"'model\.onnx' is another file"),
        ({"file": "tokenizer.json"}, r"'tokenizer\.json' is another file"),
        (profile(name="other"), r"no input 'other'"),
        (profile(min=[1, 1, 0]), r"differ in length"),
        (profile(min=[1, 1, -1, 8]), r"0 <= min <= opt <= max"),
        (profile(opt=[1, 1, 65, 8]), r"0 <= min <= opt <= max"),
        (profile(max=[2, 1, 10**30, 8]), r"0 <= min <= opt <= max"),
        (profile(min=[], opt=[], max=[]), r"has 0 dimensions, the graph's has 4"),
        ({"rank": 1}, r"unknown key plans\[0\]\.rank"),
    ],
)
def test_plan_entry_that_is_not_understood_is_refused(
    bundle: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BundleError, match=words):
        add_plan(bundle, **changes)
