"""The parity check on a real bundle that was tampered with: every kind of it is caught.

Each tampered bundle gets a new manifest, so that its hashes match: only the check can tell.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from runtime.backends.ort import run_error
from runtime.bundle.reader import hash_file, read_manifest, write_manifest
from runtime.errors import BundleError
from runtime.parity.cases import load_cases
from runtime.parity.verdict import FAIL, PASS
from tests.support.parity import seal, verdict_of

Edit = Callable[[onnx.ModelProto], None]


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
    assert run_error(RuntimeError(message)).problem == (
        "ONNX Runtime failed: [ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:"
        "Unsupported model IR version: 99"
    )


def test_graph_that_is_rubbish_is_refused_in_one_line(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"\x08\x0a" + b"\xff" * 50)
    seal(copy)
    with pytest.raises(BundleError, match="cannot load") as caught:
        verdict_of(copy)
    assert "\n" not in str(caught.value)
