"""The parity check on a real bundle: it passes; bad cases, wrong caches and links are caught."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.live import record_live
from runtime.backends.ort import CpuBackend
from runtime.bundle.manifest import render_hash, render_manifest
from runtime.bundle.reader import read_manifest, write_manifest
from runtime.decode.kv_cache import BUCKET, KVCache
from runtime.errors import BundleError
from runtime.parity.cases import load_cases
from runtime.parity.check import FastReport
from runtime.parity.verdict import FAIL, PASS
from tests.support.parity import seal, verdict_of


def test_untouched_bundle_passes(bundle: Path) -> None:
    report = verdict_of(bundle)
    assert report.verdict == PASS, [r.to_json() for r in report.rows if r.verdict != PASS][:3]
    assert report.worst_relative_l2 <= max(1e-5, 3 * report.reference_error)
    kinds = {row.measurement.kind for row in report.rows}
    assert kinds == {"prefill", "decode", "padded", "mixed", "greedy", "far", "long"}
    assert {row.measurement.depth for row in report.rows} >= set(report.depths)


def test_bundle_without_cases_fails(copy: Path) -> None:
    (copy / "cases.safetensors").unlink()
    seal(copy)
    report = verdict_of(copy)
    assert report.verdict == FAIL
    assert report.rows == ()
    assert "holds no cases" in report.problems[0]


def test_figures_that_were_not_measured_are_null_in_json(copy: Path, tmp_path: Path) -> None:
    """Those of the faster arithmetic of integers too."""
    (copy / "cases.safetensors").unlink()
    seal(copy)
    fast = FastReport(4, math.inf, math.inf, 0.02, 0.0)
    report = dataclasses.replace(verdict_of(copy), fast=fast)
    report.write_json(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["verdict"], written["worst_relative_l2"]) == (FAIL, None)
    assert (written["fast"]["mean_kl"], written["fast"]["worst_kl"]) == (None, None)


def test_depth_without_cases_fails(copy: Path) -> None:
    fields = read_manifest(copy).to_json()
    most = fields["depth"]["max"]
    fields["depth"]["max"] = most + 1
    write_manifest(copy, **fields)
    report = verdict_of(copy)
    assert report.verdict == FAIL
    assert f"no prefill case at depth {most + 1}" in report.problems


def test_recorded_lengths_pass_chunk_bucket_and_last_position(bundle: Path) -> None:
    """The tiny models have 512 positions, as many as a prompt's chunk."""
    cases = {case.kind: case for case in load_cases(bundle / "cases.safetensors")}
    far, long = cases["far"], cases["long"]
    assert far.inputs["position_ids"].max() == 511
    assert far.positions[-1] == 511
    spans = long.inputs["spans"].tolist()
    assert spans == [[4, 8], [BUCKET - 3, BUCKET + 5], [511, 512]]
    assert long.positions[-1] == 511
    (row,) = [r for r in verdict_of(bundle).rows if r.measurement.kind == "long"]
    asked = [place for place, _ in row.measurement.position_errors]
    assert asked == [place for start, end in spans for place in range(start - 1, end)]


def test_a_cache_that_grows_wrongly_is_caught(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = KVCache.reserve

    def forgetful(cache: KVCache, slots: int, *others: int) -> bool:
        grown = reserve(cache, slots, *others)
        if grown and slots > BUCKET:
            cache.valid[:, :1] = 0  # the first slot is lost on the way
        return grown

    monkeypatch.setattr(KVCache, "reserve", forgetful)
    report = verdict_of(bundle)
    failed = [row.measurement.kind for row in report.rows if row.verdict == FAIL]
    assert failed == ["long"]


def test_rows_that_read_the_past_of_another_are_caught(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no past, or with one row, nothing tells."""
    ran = CpuBackend.run

    def first_for_all(backend: CpuBackend, inputs: Mapping[str, Any]) -> dict[str, Any]:
        past = {name for name in inputs if name.startswith("past_") and inputs[name].shape[0] > 1}
        wrong = {name: np.repeat(inputs[name][:1], len(inputs[name]), axis=0) for name in past}
        return ran(backend, {**inputs, **wrong})

    monkeypatch.setattr(CpuBackend, "run", first_for_all)
    failed = {row.measurement.case for row in verdict_of(bundle).rows if row.verdict == FAIL}
    assert failed == {"mixed-d05-more"}


def test_a_prompt_cut_wrongly_into_chunks_is_caught(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.decode.decoder.PREFILL_CHUNK", 256)
    assert verdict_of(bundle).verdict == PASS  # any size will do
    append = KVCache.append

    def overlapping(cache: KVCache, new: Any, pool: Any, counts: Any, index: Any) -> None:
        append(cache, new, pool, counts, index)
        if new.layers.shape[-2] == 256:
            cache.lengths[0] -= 1  # the next positions stay what they are

    monkeypatch.setattr(KVCache, "append", overlapping)
    failed = [row.measurement.kind for row in verdict_of(bundle).rows if row.verdict == FAIL]
    assert failed == ["long"]


def test_fresh_inputs_are_not_the_recorded_ones(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    recorded = load_cases(tiny_bundle / "cases.safetensors")[0].inputs["input_ids"]
    first, again, other = (
        record_live(tiny_bundle, tiny_checkpoint, seed)[0].inputs["input_ids"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, recorded)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("linked", ["hard", "inside", "parent"])
def test_data_file_of_two_names_is_refused_with_the_cure(
    tiny_bundle: Path, tmp_path: Path, linked: str
) -> None:
    """Hard links come of cp -al and of backups; a link to a directory could lead anywhere later."""
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, path)
    data = path / "model.onnx.data"
    if linked == "hard":
        (tmp_path / "other").hardlink_to(data)
        with pytest.raises(BundleError, match=r"has 2 hard links .* cp .* && mv ") as caught:
            verdict_of(path)
    elif linked == "inside":
        data.rename(path / "weights")
        data.symlink_to("weights")
        with pytest.raises(BundleError, match=r"is a symbolic link, .* cp .* && mv ") as caught:
            verdict_of(path)
    else:
        (tmp_path / "elsewhere").mkdir()
        data.rename(tmp_path / "elsewhere" / "model.onnx.data")
        (path / "weights").symlink_to(tmp_path / "elsewhere")
        edited = read_manifest(tiny_bundle).to_json()
        edited["graphs"]["onnx"]["data"] = ["weights/model.onnx.data"]
        edited["files"]["weights/model.onnx.data"] = edited["files"].pop("model.onnx.data")
        text = render_manifest(edited).encode()
        (path / "manifest.json").write_bytes(text)
        (path / "manifest.sha256").write_bytes(render_hash(text))
        with pytest.raises(BundleError, match="is a link out of the bundle") as caught:
            verdict_of(path)
    assert "\n" not in str(caught.value)
    if linked != "parent":
        cure = str(caught.value).partition("place: ")[2]
        assert subprocess.run(["sh", "-c", cure], check=True).returncode == 0
        assert verdict_of(path).verdict == PASS


def test_bundle_reached_by_a_link_or_with_other_files_linked_is_fine(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "other").hardlink_to(tmp_path / "real" / "tokenizer.json")
    assert verdict_of(tmp_path / "link").verdict == PASS
