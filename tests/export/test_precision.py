"""Bundles of every precision: what they store, what they compute, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export import export_bundle
from export.cases import record_cases
from export.errors import ExportError
from export.graph.compile import compile_graph
from export.graph.passes.weight_only import graphs_of
from export.graph.storage import save_graph
from export.graph.view import describe_graph
from export.live import record_live
from export.precision import PRECISIONS
from export.quantize.model import Quantization, quantize_model
from ouroboros import load_checkpoint, save_checkpoint
from runtime import Engine, EngineError
from runtime.bundle.reader import open_bundle, write_manifest
from runtime.parity.check import check_bundle
from tests.support.tiny import MAX_DEPTH as DEPTH

CALIBRATION = "The quick brown fox jumps over the lazy dog, and then it rests. " * 40


def make(checkpoint: Path, out: Path, precision: str, **options: Any) -> Path:
    export_bundle(checkpoint, out, max_depth=DEPTH, precision=precision, **options)
    return out


@pytest.fixture(scope="module")
def half_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tiny_checkpoint, tmp_path_factory.mktemp("half") / "fp16", "fp16")


@pytest.fixture(scope="module")
def int4_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int4")
    text = folder / "calibration.txt"
    text.write_text(CALIBRATION)
    return make(tiny_checkpoint, folder / "int4", "int4", calibration=text)


@pytest.mark.slow
def test_half_is_no_further_off_than_twice_pytorch(half_bundle: Path) -> None:
    report = check_bundle(half_bundle, threads=1)
    assert report.verdict in ("PASS", "AMBIGUOUS")
    logits = [row.measurement for row in report.rows if row.measurement.output == "logits"]
    assert {m.depth for m in logits} == set(range(1, DEPTH + 1))
    # float16 has 11 bits: an error of 1e-5 or less would mean that nothing was narrowed.
    assert all(1e-5 < m.worst_relative_l2 <= 2 * m.reference_error for m in logits)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_parity_of_a_model_with_massive_activations(
    massive_checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    report = check_bundle(make(massive_checkpoint, tmp_path / "bundle", precision), threads=1)
    assert report.verdict in ("PASS", "AMBIGUOUS"), [
        row.to_json() for row in report.rows if row.verdict == "FAIL"
    ][:3]


@pytest.mark.slow
def test_live_check_knows_the_precision(
    half_bundle: Path, int4_bundle: Path, tiny_checkpoint: Path
) -> None:
    assert check_bundle(
        half_bundle, cases=record_live(half_bundle, tiny_checkpoint, 5)
    ).verdict in (
        "PASS",
        "AMBIGUOUS",
    )
    with pytest.raises(ExportError, match="calibrated"):
        record_live(int4_bundle, tiny_checkpoint, 5)


@pytest.mark.slow
def test_live_check_rounds_the_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = make(tiny_checkpoint, tmp_path / "int4", "int4", block_size=32)
    assert check_bundle(bundle, cases=record_live(bundle, tiny_checkpoint, 5)).verdict == "PASS"


@pytest.mark.slow
def test_half_caches_are_half_and_islands_are_not(half_bundle: Path) -> None:
    graph = onnx.load(half_bundle / "model.onnx", load_external_data=False).graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)
    }
    caches = {kind for name, kind in types.items() if "key_values" in name}
    assert caches == {onnx.TensorProto.FLOAT16}
    for name in ("logits", "pool_sum", "past_pool_sum"):
        assert types[name] == onnx.TensorProto.FLOAT
    with Engine.open(half_bundle, threads=1) as engine:
        decoder = engine.new_decoder([2])
        decoder.prefill([[5, 6, 7]])
        assert decoder.cache.named()["past_key_values.0.key"].dtype == np.float16
        assert len(engine.generate("Hello", depth=2, max_new_tokens=5).tokens) >= 1


@pytest.mark.slow
def test_activations_beyond_float16_give_no_nan(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A layer scaled so that products, scores and the residual leave float16's range."""
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    with torch.no_grad():
        for layer in (model.prelude[1], *model.recurrent.layers):
            layer.mlp.up_proj.weight *= 1e4
            layer.mlp.down_proj.weight *= 1e2
            layer.self_attn.q_proj.weight *= 1e4
            layer.self_attn.v_proj.weight *= 1e5
        save_checkpoint(model, tokenizer, tmp_path / "big")
        ids = torch.arange(10, 22)[None]
        assert not torch.isfinite(model.half()(ids, depth=2, use_cache=False).logits).all()
    bundle = make(tmp_path / "big", tmp_path / "bundle", "fp16")
    with Engine.open(bundle, threads=1) as engine:
        assert np.isfinite(engine.logits(ids[0].numpy(), depth=2)).all()
    # PyTorch's own error gives the bound; where it overflows there is none, and that is said.
    report = check_bundle(bundle, threads=1)
    assert report.verdict == "FAIL"
    assert report.problems == (
        "a case in which PyTorch itself does not overflow: nothing was compared",
    )
    assert all("PyTorch itself overflows" in row.reason for row in report.rows if row.reason)
    assert all(row.measurement.difference.finite for row in report.rows)


@pytest.mark.slow
def test_bfloat16_is_built_and_refused_by_the_cpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = make(tiny_checkpoint, tmp_path / "bf16", "bf16")
    onnx.checker.check_model(str(bundle / "model.onnx"))
    assert open_bundle(bundle).manifest.cache_dtype == "bfloat16"
    with pytest.raises(EngineError, match="bfloat16"):
        Engine.open(bundle, backend="cpu")


def optimized_graphs(bundle: Path, folder: Path) -> dict[str, onnx.GraphProto]:
    """The graph and its Loop body after ONNX Runtime has optimised them."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(bundle / "model.onnx"), options)
    graph = onnx.load(folder / "optimized.onnx", load_external_data=False).graph
    (loop,) = [node for node in graph.node if node.op_type == "Loop"]
    (body,) = [attribute.g for attribute in loop.attribute if attribute.name == "body"]
    return {"graph": graph, "body": body}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("precision", "symmetric", "opset"),
    [
        pytest.param("int4", True, 24, marks=SLOW),
        pytest.param("int8", False, 21, marks=SLOW),
        pytest.param("int4", False, 24, marks=SLOW),
        pytest.param("int8", True, 24, marks=SLOW),
        pytest.param("int4", True, 21, marks=SLOW),
        pytest.param("int4", False, 21, marks=SLOW),
    ],
)
def test_quantized_bundle_is_the_dequantised_model(
    tiny_checkpoint: Path, tmp_path: Path, precision: str, symmetric: bool, opset: int
) -> None:
    bundle = make(
        tiny_checkpoint,
        tmp_path / "b",
        precision,
        symmetric=symmetric,
        opset=opset,
        accuracy_level=4,
    )
    report = check_bundle(bundle, threads=1)
    assert report.verdict != "FAIL"
    assert report.worst_relative_l2 <= 1e-5
    assert report.fast is not None
    assert report.fast.accuracy_level == 4
    graphs = optimized_graphs(bundle, tmp_path)
    operators = {name: [node.op_type for node in graph.node] for name, graph in graphs.items()}
    # Four products of the layer and the gate; four layers with four each, bridge and head.
    assert operators["body"].count("MatMulNBits") == 5
    assert operators["graph"].count("MatMulNBits") == 18
    assert "DequantizeLinear" not in operators["graph"] + operators["body"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_block_of_another_precision_is_its_own_model(
    block_checkpoint: Path, tmp_path: Path, precision: str, calibrated: bool
) -> None:
    options: dict[str, Any] = {}
    if calibrated:
        if precision == "fp16":
            pytest.skip("only integers are calibrated")
        (tmp_path / "text.txt").write_text(CALIBRATION)
        options = {"calibration": tmp_path / "text.txt"}
    bundle = make(block_checkpoint, tmp_path / "b", precision, **options)
    report = check_bundle(bundle, threads=1)
    assert report.verdict != "FAIL"
    if precision != "fp16":
        assert report.worst_relative_l2 <= 1e-5
        operators = [node.op_type for node in optimized_graphs(bundle, tmp_path)["body"].node]
        assert operators.count("MatMulNBits") == 2 * 4 + 1  # two layers, and the gate


@pytest.mark.slow
def test_four_bits_in_the_loop_run_as_matmulnbits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """int4 bundles keep 8 bits in the loop for quality's sake; the graph can do with 4."""
    model, _ = load_checkpoint(tiny_checkpoint)
    quantized = quantize_model(model, Quantization(4, sensitive_bits=4))
    graph, _ = compile_graph(model, PRECISIONS["int4"], DEPTH, quantized)
    save_graph(graph, tmp_path / "model.onnx")
    graphs = optimized_graphs(tmp_path, tmp_path)
    for name, count in (("body", 5), ("graph", 18)):
        nodes = [node for node in graphs[name].node if node.op_type == "MatMulNBits"]
        bits = [{a.name: a.i for a in node.attribute}["bits"] for node in nodes]
        assert bits == [4] * count
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), options)
    case = record_cases(model, None, [DEPTH])[0]
    (logits,) = session.run(["logits"], dict(case.inputs))
    expected = case.outputs["logits"]
    assert np.linalg.norm(logits - expected) <= 1e-5 * np.linalg.norm(expected)


def test_tied_embedding_and_head_share_their_bytes(int4_bundle: Path) -> None:
    graph = onnx.load(int4_bundle / "model.onnx", load_external_data=False).graph
    ranges = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.initializer
        if tensor.external_data
    }
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert ranges["closing.head_values"] == ranges["opening.table_words"]
    assert ranges["closing.head_scales_half"] == ranges["opening.table_scales"]
    assert kinds["closing.head_values"] == onnx.TensorProto.UINT8
    assert kinds["opening.table_words"] == onnx.TensorProto.INT32


@pytest.mark.slow
@pytest.mark.parametrize(("half", "lossy"), [(True, False), (True, True), (False, False)])
def test_scales_take_two_bytes_where_that_loses_nothing(
    tiny_checkpoint: Path, half: bool, lossy: bool
) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    quantized = quantize_model(model, Quantization(8))
    if lossy:  # as by an attention scale that is no power of two
        for name in ("lm_head.weight", "embed_tokens.weight", "bridge.weight"):
            quantized.weights[name] = quantized.weights[name].scaled(1 / 3)
    graph, _ = compile_graph(model, PRECISIONS["int8"], DEPTH, quantized, half_scales=half)
    kinds = {
        name: value.const_value.dtype.name
        for one in graphs_of(graph)
        for name, value in one.initializers.items()
        if "scales" in name
    }
    narrow = {name for name, kind in kinds.items() if kind == "FLOAT16"}
    of_lossy = {name for name in kinds if name.startswith(("closing.head", "opening.", "bridge."))}
    assert len(of_lossy) == 3
    assert narrow == (set() if not half else kinds.keys() - (of_lossy if lossy else set()))


def test_integers_are_read_where_they_are_used(int4_bundle: Path) -> None:
    tree = "\n".join(describe_graph(int4_bundle / "model.onnx"))
    prelude, _, rest = tree.partition("├─ loop: ")
    coda = rest.partition("├─ coda: ")[2]
    assert re.search(r"prelude: 2 layers.*layers 0\.\.1: .* gate_up ", prelude, re.DOTALL)
    assert re.search(r"^2 layers.*layers 2\.\.3: .* gate_up .* head_values ", coda, re.DOTALL)


def test_parameters_are_the_checkpoints(int4_bundle: Path, tiny_bundle: Path) -> None:
    # Calibration unties embedding and head, which still share their bytes.
    found, expected = (open_bundle(path).manifest.model for path in (int4_bundle, tiny_bundle))
    assert found.parameters == expected.parameters


def test_calibration_is_recorded(int4_bundle: Path) -> None:
    spec = open_bundle(int4_bundle).manifest.quantization
    assert spec is not None
    assert (spec.method, spec.bits, spec.symmetric) == ("gptq", 4, False)
    assert len(spec.calibration or "") == 64


def test_accuracy_level_is_chosen_when_opened(int4_bundle: Path) -> None:
    ids = list(range(5, 30))
    shipped, exact, fast = (
        Engine.open(int4_bundle, threads=1, accuracy_level=level).logits(ids, depth=2)
        for level in (None, 1, 4)
    )
    np.testing.assert_array_equal(shipped, fast)  # calibrated bundles ship at level 4
    assert 0 < np.abs(fast - exact).max() < 0.5
    with pytest.raises(EngineError, match=r"accuracy_level=2 .* allowed: 1, 4"):
        Engine.open(int4_bundle, accuracy_level=2)


@pytest.mark.parametrize("name", ["step.layers.0.down.weight", "bridge.weight"])
def test_changed_quantised_weight_fails_the_check(
    int4_bundle: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(int4_bundle, tmp_path / "b")
    model = onnx.load(tmp_path / "b" / "model.onnx")
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    (body,) = [attribute.g for attribute in loop.attribute if attribute.name == "body"]
    stored = [*model.graph.initializer, *body.initializer]
    (scales,) = [tensor for tensor in stored if tensor.name == f"{name}_scales_half"]
    values = onnx.numpy_helper.to_array(scales).copy()
    values[0] *= 1.01
    scales.CopyFrom(onnx.numpy_helper.from_array(values, scales.name))
    onnx.save(model, tmp_path / "b" / "model.onnx")
    (tmp_path / "b" / "model.onnx.data").unlink()
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["graphs"]["onnx"]["data"] = []
    for key in ("format_version", "files"):
        del manifest[key]
    write_manifest(tmp_path / "b", **manifest)
    assert check_bundle(tmp_path / "b", threads=1).verdict == "FAIL"


@pytest.mark.slow
def test_two_exports_are_byte_identical(
    tiny_checkpoint: Path, int4_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "calibration.txt").write_text(CALIBRATION)
    again = make(
        tiny_checkpoint, tmp_path / "again", "int4", calibration=tmp_path / "calibration.txt"
    )
    for file in sorted(int4_bundle.iterdir()):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_exports_of_every_precision_are_byte_identical(
    tiny_checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    one, other = (make(tiny_checkpoint, tmp_path / name, precision) for name in ("one", "other"))
    for file in sorted(one.iterdir()):
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int3"}, "int3 .* allowed: fp32, fp16, bf16, int8, int4"),
        ({"precision": "int4", "block_size": 48}, "block_size=48 .* allowed: 32, 64, 128"),
        ({"precision": "int4", "block_size": 128}, "block_size=128 .* allowed: 32"),
        ({"precision": "fp16", "calibration": Path("x.txt")}, "calibration is for int8 and int4"),
        ({"precision": "int8", "accuracy_level": 2}, "accuracy_level=2 .* allowed: 1, 4"),
        ({"opset": 20}, "20"),
        ({"precision": "int4", "symmetric": False, "format": "trt"}, "no zero points"),
    ],
)
def test_bad_precision_options_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        export_bundle(tiny_checkpoint, tmp_path / "out", max_depth=DEPTH, **options)
    assert list(tmp_path.iterdir()) == []


def test_calibration_text_too_short_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    options = {"precision": "int4", "calibration": tmp_path / "short.txt"}
    with pytest.raises(ExportError, match="too short to calibrate on, fewer than 256 tokens"):
        export_bundle(tiny_checkpoint, tmp_path / "out", max_depth=DEPTH, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_untied_head_is_quantised_apart(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    fields = model.config.to_dict()
    fields["base_config"]["tie_word_embeddings"] = fields["tie_word_embeddings"] = False
    untied = type(model)(type(model.config).from_dict(fields)).eval()
    untied.load_state_dict(model.state_dict())
    with torch.no_grad():
        untied.lm_head.weight.copy_(torch.randn_like(untied.lm_head.weight))
    save_checkpoint(untied, tokenizer, tmp_path / "untied")
    bundle = make(tmp_path / "untied", tmp_path / "b", "int4")
    report = check_bundle(bundle, threads=1)
    assert report.worst_relative_l2 <= 1e-5
    assert report.verdict != "FAIL"
