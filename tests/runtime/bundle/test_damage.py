"""Bundles as they are opened: every damage is named, in a file, the manifest or its hash."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle.manifest import (
    MANIFEST_NAME,
    parse_manifest,
    parse_manifest_text,
)
from runtime.bundle.reader import find_damage, open_bundle, read_manifest, write_manifest
from runtime.errors import BundleError
from tests.support.manifests import FIELDS, changed, read


def test_bundle_round_trip(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.depth.trained == (1, 2)
    assert manifest.files["model.onnx"].bytes == 5
    assert json.loads(json.dumps(manifest.to_json())) == read(bundle)
    assert parse_manifest(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_bundle_extra_file_is_ignored_and_unusable(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    opened = open_bundle(bundle)
    with pytest.raises(BundleError, match=r"notes\.txt"):
        opened.file("notes.txt")


def overwrite(file: Path, data: bytes | bytearray) -> None:
    """Writes in place: file systems flush what was cut to nothing first, a thousand times here."""
    with file.open("r+b") as opened:
        opened.write(data)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_bundle_any_flipped_bit_is_caught(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        overwrite(bundle / name, data)
        with pytest.raises(BundleError, match=f"{name} is damaged"):
            open_bundle(bundle)
        data[bit // 8] ^= 1 << bit % 8


FILES = (
    "manifest.json",
    "model.onnx",
    "model.onnx.data",
    "tokenizer.json",
    "chat_template.jinja",
    "cases.safetensors",
    "LICENSE",
    "ATTRIBUTION",
    "tokenizer_config.json",
)


@pytest.mark.parametrize("name", FILES)
def test_real_bundle_flipped_bit_is_caught(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    copied = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copied)
    data = bytearray((copied / name).read_bytes())
    for position in (0, 1, len(data) // 3, len(data) // 2, len(data) - 2, len(data) - 1):
        for bit in (0, 5, 7):
            data[position] ^= 1 << bit
            (copied / name).write_bytes(data)
            with pytest.raises(BundleError, match=name) as caught:
                open_bundle(copied)
            assert "\n" not in str(caught.value)
            data[position] ^= 1 << bit
    (copied / name).write_bytes(data)
    assert {MANIFEST_NAME, *open_bundle(copied).manifest.files} == {*FILES}
    (copied / name).unlink()
    with pytest.raises(BundleError, match=name):
        open_bundle(copied)


def test_bundle_any_missing_or_short_file_is_named(bundle: Path) -> None:
    (bundle / "tokenizer.json").write_bytes(b"{")
    with pytest.raises(BundleError, match=r"tokenizer\.json has 1 bytes, its manifest says 2"):
        open_bundle(bundle)
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"lacks tokenizer\.json"):
        open_bundle(bundle)
    (bundle / "tokenizer.json").mkdir()
    with pytest.raises(BundleError, match=r"lacks tokenizer\.json"):
        open_bundle(bundle)


def test_damage_is_found_to_the_last_file(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert find_damage(bundle, manifest) == {}
    first, *_, last = manifest.files
    (bundle / first).unlink()
    (bundle / last).write_bytes(b"x")
    damage = find_damage(bundle, manifest)
    assert list(damage) == [first, last]
    assert f"lacks {first}" in str(damage[first])
    assert "has 1 bytes" in str(damage[last])


def test_bundle_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"cannot read .*: File name too long; make"):
        open_bundle(tmp_path / ("x" * 300))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BundleError, match="is a file"):
        open_bundle(file)


@pytest.mark.parametrize(
    # Of the manifest every 37th bit; all of them in the slow run.
    "every",
    [9, pytest.param(1, marks=pytest.mark.slow)],
)
def test_manifest_any_flipped_bit_is_caught(bundle: Path, every: int) -> None:
    for name in ("manifest.json", "manifest.sha256"):
        file = bundle / name
        whole = file.read_bytes()
        data = bytearray(whole)
        for bit in range(0, 8 * len(data), every):
            data[bit // 8] ^= 1 << bit % 8
            overwrite(file, data)
            with pytest.raises(BundleError, match="is damaged or was changed"):
                read_manifest(bundle)
            data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(whole)
    read_manifest(bundle)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("depth", "default"), 3),
        (("model", "source"), "tests2"),
        (("sampling", "temperature"), 0.5),
        (("parity", "relative_l2"), 1e-4),
        (("tools", "torch"), "2"),
    ],
)
def test_manifest_changed_value_that_is_allowed_is_caught(
    bundle: Path, keys: tuple[str, ...], value: Any
) -> None:
    (bundle / "manifest.json").write_text(json.dumps(changed(bundle, *keys, value=value)))
    with pytest.raises(BundleError, match=r"damaged or was changed.*export the bundle again"):
        open_bundle(bundle)


def test_manifest_is_hashed_as_sha256sum_does(bundle: Path) -> None:
    """Over the bytes of the file: no reader needs to write JSON as Python does."""
    subprocess.run(["sha256sum", "--check", "manifest.sha256"], cwd=bundle, check=True)
    text = json.dumps(read(bundle), sort_keys=True).replace("1e-05", "1E-05").encode()
    (bundle / "manifest.json").write_bytes(text)
    said = f"{hashlib.sha256(text).hexdigest()}  manifest.json\n"
    (bundle / "manifest.sha256").write_text(said)
    assert open_bundle(bundle).manifest == parse_manifest_text(text)
    for other in (said.upper(), said.strip(), f"{said}x", said.replace("manifest.json", "x")):
        (bundle / "manifest.sha256").write_text(other)
        with pytest.raises(BundleError, match="damaged or was changed"):
            open_bundle(bundle)


def test_bundle_without_its_hash_is_refused(bundle: Path) -> None:
    file = bundle / "manifest.sha256"
    said = file.read_text()
    for spoil in (file.unlink, file.mkdir):
        spoil()
        with pytest.raises(BundleError, match=r"no manifest\.sha256 of one line; copy or export"):
            open_bundle(bundle)
    file.rmdir()
    file.write_text(said + "x" * 5000)  # not read into memory however large it is
    with pytest.raises(BundleError, match="of one line"):
        open_bundle(bundle)


def test_bundle_link_out_is_refused_and_inside_taken(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "model.onnx"
    outside.write_bytes(b"graph")
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="link out of the bundle"):
        open_bundle(bundle)
    (bundle / "model.onnx").unlink()
    (bundle / "blob").write_bytes(b"graph")
    (bundle / "model.onnx").symlink_to("blob")
    open_bundle(bundle)
    (bundle / "blob").unlink()
    (bundle / "blob").symlink_to("model.onnx")  # a loop
    with pytest.raises(BundleError):
        open_bundle(bundle)


def test_a_hash_that_was_handed_on_is_not_trusted_when_opened(bundle: Path) -> None:
    write_manifest(bundle, {"model.onnx": "0" * 64}, **copy.deepcopy(FIELDS))
    assert read_manifest(bundle).files["model.onnx"].sha256 == "0" * 64
    with pytest.raises(BundleError, match=r"model\.onnx is damaged or was changed"):
        open_bundle(bundle)
