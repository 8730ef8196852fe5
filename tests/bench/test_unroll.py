from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from bench.unroll import unroll_loop, write_unrolled
from export import export_bundle
from export.errors import ExportError
from runtime import Engine
from tests.support.tiny import MAX_DEPTH

IDS = list(range(10, 30))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_unrolled_graph_computes_the_same(tiny_bundle: Path, tmp_path: Path, depth: int) -> None:
    write_unrolled(tiny_bundle, tmp_path / "unrolled", depth)
    onnx.checker.check_model(str(tmp_path / "unrolled" / "model.onnx"))
    outputs = {}
    for name, path in (("loop", tiny_bundle), ("unrolled", tmp_path / "unrolled")):
        with Engine.open(path, threads=1) as engine:
            logits = engine.logits(IDS, depth=depth)
            decoder = engine.new_decoder([depth])
            cached = [decoder.prefill([np.array(IDS)]), *(decoder.step([t]) for t in (40, 41, 42))]
            # A copy: the decoder may hand out the buffer that it writes to next.
            outputs[name] = [logits, *(np.array(one) for one in cached)]
    for looped, unrolled in zip(outputs["loop"], outputs["unrolled"], strict=True):
        scale = float(np.abs(looped).max())
        np.testing.assert_allclose(unrolled / scale, looped / scale, rtol=0, atol=1e-6)


def test_unrolled_graph_stores_each_weight_once(tiny_bundle: Path) -> None:
    looped = ir.load(tiny_bundle / "model.onnx")
    (loop,) = [node for node in looped.graph if node.op_type == "Loop"]
    weights = len(loop.attributes["body"].as_graph().initializers)
    before = len(looped.graph.initializers)

    unrolled = unroll_loop(looped, 4)

    assert all(node.op_type != "Loop" for node in unrolled.graph)
    # A number for each step and the axis along which the scans are joined.
    assert len(unrolled.graph.initializers) == before + weights + 4 + 1


def test_unroll_depth_zero_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(ExportError, match=r"depth=0 can't be unrolled; give 1 or more"):
        unroll_loop(ir.load(tiny_bundle / "model.onnx"), 0)


def test_unroll_without_a_loop_is_refused(tiny_bundle: Path) -> None:
    model = unroll_loop(ir.load(tiny_bundle / "model.onnx"), 2)
    with pytest.raises(ExportError, match="holds 0 Loop nodes"):
        unroll_loop(model, 2)


@pytest.mark.slow
def test_unrolled_integers_are_fused_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Else the yardstick of the int4 loop would be slow by itself."""
    export_bundle(tiny_checkpoint, tmp_path / "int4", max_depth=MAX_DEPTH, precision="int4")
    write_unrolled(tmp_path / "int4", tmp_path / "unrolled", 3)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(tmp_path / "unrolled" / "model.onnx"), options)
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    # Five in each of three steps; four layers with four products, the bridge and the head.
    assert kinds.count("MatMulNBits") == 3 * 5 + 16 + 2
    assert "DequantizeLinear" not in kinds
    with Engine.open(tmp_path / "int4", threads=1) as loop:
        expected = loop.logits(IDS, depth=3)
    with Engine.open(tmp_path / "unrolled", threads=1) as unrolled:
        found = unrolled.logits(IDS, depth=3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
