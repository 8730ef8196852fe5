"""The parity check on a real bundle: it passes, and every kind of tampering is caught.

Each tampered bundle gets a new manifest, so that its hashes match: only the check can tell.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.live import record_live
from runtime.backends.ort import CpuBackend, run_error
from runtime.bundle.manifest import render_hash, render_manifest
from runtime.bundle.reader import hash_file, read_manifest, write_manifest
from runtime.decode.kv_cache import BUCKET, KVCache
from runtime.errors import BundleError
from runtime.parity.cases import load_cases
from runtime.parity.check import ParityReport, check_bundle
from runtime.parity.verdict import FAIL, PASS

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(params=["plain", pytest.param("massive", marks=pytest.mark.slow)])
def bundle(request: pytest.FixtureRequest) -> Path:
    """A tiny bundle; the second has massive activations and attention scores of a thousand."""
    name = "tiny_bundle" if request.param == "plain" else "massive_bundle"
    found: Path = request.getfixturevalue(name)
    return found


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    shutil.copytree(bundle, path)
    return path


def seal(bundle: Path) -> None:
    """Writes the manifest anew, with the hashes that the files have now."""
    fields = read_manifest(bundle).to_json()
    write_manifest(bundle, **fields)


def edit(bundle: Path, change: Edit) -> None:
    """Changes the graph or its weights and seals the bundle."""
    before = [hash_file(bundle / name) for name in ("model.onnx", "model.onnx.data")]
    model = onnx.load(bundle / "model.onnx")
    change(model)
    (bundle / "model.onnx.data").unlink()
    onnx.save(
        model,
        bundle / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=1024,
    )
    assert before != [hash_file(bundle / name) for name in ("model.onnx", "model.onnx.data")]
    seal(bundle)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (found,) = (
        tensor
        for graph in graphs(model.graph)
        for tensor in graph.initializer
        if tensor.name == name
    )
    return found


def change_weight(model: onnx.ModelProto, name: str, change: Callable[[Any], None]) -> None:
    tensor = weight(model, name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swap_rows(values: Any) -> None:
    assert np.abs(values[0] - values[1]).max() > 1e-3, "the model's steps are all alike"
    values[[0, 1]] = values[[1, 0]]


def scale_head(values: Any) -> None:
    columns = values[:, : values.shape[1] // 7]  # one of the 7 projections
    assert np.abs(columns).max() > 1e-3, "the model's Controller does nothing"
    columns *= 1.1


def verdict_of(bundle: Path) -> ParityReport:
    return check_bundle(bundle, threads=1)


def test_untouched_bundle_passes(bundle: Path) -> None:
    report = verdict_of(bundle)
    assert report.verdict == PASS, [r.to_json() for r in report.rows if r.verdict != PASS][:3]
    assert report.worst_relative_l2 <= max(1e-5, 3 * report.reference_error)
    kinds = {row.measurement.kind for row in report.rows}
    assert kinds == {"prefill", "decode", "padded", "mixed", "greedy", "far", "long"}
    assert {row.measurement.depth for row in report.rows} >= set(report.depths)


def test_resaved_bundle_still_passes(copy: Path) -> None:
    """So that the failures below come from what they change."""

    def rename(model: onnx.ModelProto) -> None:
        model.producer_name = "test"

    edit(copy, rename)
    assert verdict_of(copy).verdict == PASS


@pytest.mark.parametrize(
    "name",
    [
        "step.gate_weight",
        "step.layers.0.qkv.low_rank.b",
        "step.layers.0.down.weight",
        "layers.0.qkv.weight",  # of the prelude
        "layers.3.down.weight",  # of the coda
        "bridge.weight",
        "bridge.bias",
        "closing.norm.weight",
    ],
)
def test_one_changed_weight_is_caught(copy: Path, name: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        def one(values: Any) -> None:
            values.reshape(-1)[values.size // 2] += 0.05

        change_weight(model, name, one)

    edit(copy, change)
    assert verdict_of(copy).verdict == FAIL


def test_one_changed_low_rank_column_is_caught(copy: Path) -> None:
    """The A matrices lie beside the weight that reads the same input: its last columns."""

    def change(values: Any) -> None:
        values[0, -1] += 0.05

    edit(copy, lambda model: change_weight(model, "step.layers.0.qkv.weight", change))
    assert verdict_of(copy).verdict == FAIL


def test_one_changed_embedding_is_caught(copy: Path) -> None:
    """Of a token that the recorded inputs hold; the table is the head as well."""
    token = int(load_cases(copy / "cases.safetensors")[0].inputs["input_ids"][0, 0])

    def change(values: Any) -> None:
        values[token, 0] += 0.05

    edit(copy, lambda model: change_weight(model, "opening.table", change))
    assert verdict_of(copy).verdict == FAIL


def test_swapped_step_norm_is_caught(copy: Path) -> None:
    edit(copy, lambda model: change_weight(model, "step.step_norm", swap_rows))
    assert verdict_of(copy).verdict == FAIL


def test_changed_controller_head_is_caught(copy: Path) -> None:
    edit(copy, lambda model: change_weight(model, "step.modulate.heads", scale_head))
    assert verdict_of(copy).verdict == FAIL


def test_depth_off_by_one_is_caught(copy: Path) -> None:
    def one_more(model: onnx.ModelProto) -> None:
        (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
        where = list(model.graph.node).index(loop)
        one = numpy_helper.from_array(np.array(1, np.int64), "one")
        model.graph.initializer.append(one)
        model.graph.node.insert(where, helper.make_node("Add", ["depth", "one"], ["more"]))
        (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
        loop.input[0] = "more"

    edit(copy, one_more)
    report = verdict_of(copy)
    assert report.verdict == FAIL
    # One step more than the recorded cache has slots: the Loop fails, or a shape is wrong.
    reasons = {row.reason for row in report.rows if row.reason}
    assert any("shape" in reason or "running Loop node" in reason for reason in reasons), reasons


def test_last_step_left_out_is_caught(copy: Path) -> None:
    """Every shape is right, but a row stops one step early."""

    def one_less(model: onnx.ModelProto) -> None:
        one = numpy_helper.from_array(np.array(1, np.int64), "one")
        model.graph.initializer.append(one)
        for graph in graphs(model.graph):
            for node in graph.node:
                for index, name in enumerate(node.input):
                    if name == "row_depth":
                        node.input[index] = "fewer"
        model.graph.node.insert(0, helper.make_node("Sub", ["row_depth", "one"], ["fewer"]))

    edit(copy, one_less)
    report = verdict_of(copy)
    assert report.verdict == FAIL
    failed = {row.measurement.depth for row in report.rows if row.verdict == FAIL}
    assert failed >= set(report.depths)


@pytest.mark.slow
def test_mean_pooling_passed_off_as_causal_is_caught(
    copy: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from export import export_bundle
    from ouroboros.checkpoint import load_checkpoint, save_checkpoint

    model, tokenizer = load_checkpoint(tiny_checkpoint)
    assert model.config.pooling == "causal"
    model.config.pooling = "mean"
    save_checkpoint(model, tokenizer, tmp_path / "mean")
    depth = read_manifest(copy).depth.max
    export_bundle(tmp_path / "mean", tmp_path / "mean-bundle", max_depth=depth)
    assert verdict_of(tmp_path / "mean-bundle").verdict == PASS
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(tmp_path / "mean-bundle" / name, copy / name)
    seal(copy)
    assert verdict_of(copy).verdict == FAIL


def test_nan_weight_is_caught(copy: Path) -> None:
    def spoil(values: Any) -> None:
        values.reshape(-1)[0] = np.nan

    edit(copy, lambda model: change_weight(model, "step.step_norm", spoil))
    report = verdict_of(copy)
    assert report.verdict == FAIL
    assert any("NaN" in row.reason for row in report.rows)


def test_bundle_without_cases_fails(copy: Path) -> None:
    (copy / "cases.safetensors").unlink()
    seal(copy)
    report = verdict_of(copy)
    assert report.verdict == FAIL
    assert report.rows == ()
    assert "holds no cases" in report.problems[0]


def test_depth_without_cases_fails(copy: Path) -> None:
    fields = read_manifest(copy).to_json()
    most = fields["depth"]["max"]
    fields["depth"]["max"] = most + 1
    write_manifest(copy, **fields)
    report = verdict_of(copy)
    assert report.verdict == FAIL
    assert f"no prefill case at depth {most + 1}" in report.problems


def test_graph_unlike_its_manifest_is_refused(copy: Path) -> None:
    def drop(model: onnx.ModelProto) -> None:
        del model.graph.output[0]

    edit(copy, drop)
    with pytest.raises(BundleError, match="logits is in the graph: False, in the manifest: True"):
        verdict_of(copy)


def test_tensor_shape_unlike_the_manifest_is_refused(copy: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[-1].type.tensor_type.shape.dim[0].dim_value = 7

    edit(copy, fix)
    with pytest.raises(BundleError, match=r"sum is float32 \[7, .* says float32 \[batch, "):
        verdict_of(copy)


def test_data_file_that_the_manifest_does_not_list_is_refused(copy: Path) -> None:
    """ONNX Runtime would read it all the same, unverified."""
    fields = read_manifest(copy).to_json()
    fields["graphs"]["onnx"]["data"] = []
    write_manifest(copy, **fields)
    with pytest.raises(BundleError, match=r"data file 'model.onnx.data' is in the graph: True"):
        verdict_of(copy)
    fields["graphs"]["onnx"]["data"] = ["model.onnx.data", "tokenizer.json"]
    write_manifest(copy, **fields)
    with pytest.raises(BundleError, match=r"data file 'tokenizer.json' is in the graph: False"):
        verdict_of(copy)


def test_graph_that_does_not_load_is_said_once(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Nope"

    edit(copy, unknown)
    with pytest.raises(BundleError, match=r"cannot load .*Nope"):
        verdict_of(copy)
    assert capfd.readouterr().err == ""  # ONNX Runtime's own log


def test_place_in_the_source_of_onnx_runtime_is_left_out() -> None:
    message = (  # ONNX Runtime 1.32's, of a model it knows no version of
        "[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:/onnxruntime_src/onnxruntime"
        "/core/graph/model.cc:182 onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::"
        "PathString&, const onnxruntime::IOnnxRuntimeOpSchemaRegistryList*, const onnxruntime::"
        "logging::Logger&, const onnxruntime::ModelOptions&) Unsupported model IR version: 99"
    )
    assert str(run_error(RuntimeError(message))) == (
        "ONNX Runtime failed: [ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:"
        "Unsupported model IR version: 99"
    )


def test_graph_that_is_rubbish_is_refused_in_one_line(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"\x08\x0a" + b"\xff" * 50)
    seal(copy)
    with pytest.raises(BundleError, match="cannot load") as caught:
        verdict_of(copy)
    assert "\n" not in str(caught.value)


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
