from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export.errors import ExportError
from export.unroll import unroll_loop, write_unrolled
from runtime import Engine

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
