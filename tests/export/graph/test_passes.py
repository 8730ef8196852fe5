"""The graph passes, each by itself: what it changes, and that the graph still says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.errors import ExportError
from export.graph.passes import run_passes
from export.graph.passes.duplicates import share_constants, share_nodes
from export.graph.passes.folding import fold_constants
from export.graph.passes.opset import check_opset, set_opset
from export.graph.passes.reshapes import constant_reshapes

FLOAT = TensorProto.FLOAT


def build(text: str) -> ir.Model:
    """A model from ONNX's own textual form."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]>\n{text}')
    return ir.from_proto(proto)


def load(bundle: Path) -> ir.Model:
    """An exported graph, its weights in memory."""
    return ir.external_data.load_to_model(ir.load(bundle / "model.onnx"))


def count(model: ir.Model, op_type: str | None = None) -> int:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return sum(1 for node in nodes if op_type in (None, node.op_type))


def run(model: ir.Model, inputs: dict[str, Any]) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, inputs))


def loop_model(body: list[Any], initializers: list[Any]) -> ir.Model:
    """A Loop that runs `n` times over x `[4]`."""
    scalar = helper.make_tensor_value_info
    inner = helper.make_graph(
        [*body, helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [
            scalar("i", TensorProto.INT64, []),
            scalar("go", TensorProto.BOOL, []),
            scalar("h", FLOAT, [4]),
        ],
        [scalar("go_on", TensorProto.BOOL, []), scalar("next", FLOAT, [4])],
        initializers,
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=inner)],
        "graph",
        [scalar("n", TensorProto.INT64, []), scalar("x", FLOAT, [4])],
        [scalar("y", FLOAT, [4])],
        [helper.make_tensor("yes", TensorProto.BOOL, [], [True])],
    )
    opsets = [helper.make_opsetid("", 24)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def constant(name: str, values: list[float]) -> Any:
    return helper.make_tensor(name, FLOAT, [len(values)], values)


X = np.array([1, 2, 3, 4], np.float32)


def test_fold_constants_in_a_loop_body() -> None:
    body = [
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Mul", ["ab", "h"], ["next"]),
    ]
    model = loop_model(body, [constant("a", [1.0] * 4), constant("b", [0.5] * 4)])
    inputs = {"n": np.array(3), "x": X}
    before = run(model, inputs)

    result = fold_constants(model)

    assert (result.name, result.changed) == ("fold_constants", 1)
    assert count(model, "Add") == 0
    np.testing.assert_array_equal(run(model, inputs)[0], before[0])
    np.testing.assert_allclose(before[0], X * 1.5**3)


def test_fold_constants_leaves_large_results() -> None:
    model = build("""
        g (float[1] x) => (float[9000] y) <int64[1] n = {9000}, float[1] one = {1}>
        { big = Expand(one, n)  y = Mul(x, big) }""")
    assert fold_constants(model).changed == 0
    assert count(model, "Expand") == 1


def test_share_constants_keeps_one_of_each_graph() -> None:
    body = [
        helper.make_node("Add", ["h", "a"], ["ha"]),
        helper.make_node("Add", ["ha", "b"], ["hab"]),
        helper.make_node("Mul", ["hab", "c"], ["next"]),
    ]
    equal = [1.0, 2.0, 3.0, 4.0]
    parts = [constant("a", equal), constant("b", equal), constant("c", equal[::-1])]
    model = loop_model(body, parts)
    inputs = {"n": np.array(2), "x": X}
    before = run(model, inputs)

    result = share_constants(model)

    assert (result.name, result.changed) == ("share_constants", 1)
    loop = next(node for node in model.graph if node.op_type == "Loop")
    assert len(loop.attributes["body"].as_graph().initializers) == 2
    np.testing.assert_array_equal(run(model, inputs)[0], before[0])
    assert share_constants(model).changed == 0


def test_share_constants_keeps_equal_weights_apart() -> None:
    model = build("""
        g (float[9] x) => (float[9] y)
        <float[9] a = {1,1,1,1,1,1,1,1,1}, float[9] b = {1,1,1,1,1,1,1,1,1}>
        { s = Add(x, a)  y = Mul(s, b) }""")
    assert share_constants(model).changed == 0


def test_share_nodes_in_a_loop_body() -> None:
    body = [
        helper.make_node("Sin", ["h"], ["s1"]),
        helper.make_node("Sin", ["h"], ["s2"]),
        helper.make_node("Cos", ["h"], ["unread"]),
        helper.make_node("Add", ["s1", "s2"], ["next"]),
    ]
    model = loop_model(body, [])
    inputs = {"n": np.array(2), "x": X}
    before = run(model, inputs)

    result = share_nodes(model)

    assert (result.name, result.changed) == ("share_nodes", 2)
    assert (count(model, "Sin"), count(model, "Cos")) == (1, 0)
    np.testing.assert_array_equal(run(model, inputs)[0], before[0])


def test_share_nodes_tells_attributes_apart() -> None:
    model = build("""
        g (float[2, 2] x) => (float[2, 2] y)
        { a = Softmax<axis = 0>(x)  b = Softmax<axis = 1>(x)  y = Add(a, b) }""")
    assert share_nodes(model).changed == 0


def test_constant_reshapes_takes_computed_targets_away() -> None:
    model = build("""
        g (float[batch, new, 6] x) => (float[batch, new, 2, 3] y) <int64[2] tail = {2, 3}>
        { head = Shape<start = 0, end = 2>(x)
          target = Concat<axis = 0>(head, tail)
          y = Reshape(x, target) }""")
    inputs = {"x": np.arange(60, dtype=np.float32).reshape(2, 5, 6)}
    before = run(model, inputs)

    result = constant_reshapes(model)

    assert (result.name, result.changed) == ("constant_reshapes", 1)
    assert [node.op_type for node in model.graph] == ["Reshape"]
    np.testing.assert_array_equal(run(model, inputs)[0], before[0])
    assert constant_reshapes(model).changed == 0


def test_run_passes_reports_in_order() -> None:
    body = [
        helper.make_node("Add", ["h", "a"], ["ha"]),
        helper.make_node("Add", ["h", "b"], ["hb"]),
        helper.make_node("Mul", ["ha", "hb"], ["next"]),
    ]
    model = loop_model(body, [constant("a", [2.0] * 4), constant("b", [2.0] * 4)])
    results = run_passes(model, [share_nodes, share_constants, share_nodes])
    # The two Adds read equal constants, so that they are equal only once these are shared.
    assert [(result.name, result.changed) for result in results] == [
        ("share_nodes", 0),
        ("share_constants", 1),
        ("share_nodes", 1),
    ]
    assert run_passes(model, []) == []


def test_passes_leave_an_exported_graph_as_it_computes(tiny_bundle: Path) -> None:
    model = load(tiny_bundle)
    inputs = prefill_inputs(model)
    before = run(model, inputs)
    results = run_passes(model, [fold_constants, share_constants, share_nodes])
    # `ouro export` has run them already: nothing is left to share.
    assert [result.changed for result in results] == [0, 0, 0]
    for one, other in zip(run(model, inputs), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def prefill_inputs(model: ir.Model, depth: int = 3, new: int = 4) -> dict[str, Any]:
    """Inputs of an exported graph: one row of `new` tokens without a past."""
    sizes = {"batch": 1, "sequence": new, "past_sequence": 0, "slots": depth, "logits": 1}
    sizes["past_sequence + sequence"] = new
    inputs: dict[str, Any] = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) else sizes[str(size)] for size in value.shape or ()]
        assert value.dtype is not None
        inputs[str(value.name)] = np.zeros(shape, value.dtype.numpy())
    inputs["input_ids"][:] = np.arange(10, 10 + new)
    inputs["position_ids"][:] = np.arange(new)
    inputs["attention_mask"][:] = 1
    inputs["depth"][...] = depth
    inputs["row_depth"][:] = depth
    inputs["logit_index"][:] = new - 1
    return inputs


def test_opset_21_computes_the_same(tiny_bundle: Path) -> None:
    model = load(tiny_bundle)
    inputs = prefill_inputs(model)
    before = run(model, inputs)

    result = set_opset(model, 21)

    assert result.changed == count(model)
    proto = ir.to_proto(model)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 21)]
    for one, other in zip(run(model, inputs), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert set_opset(model, 21).changed == 0


@pytest.mark.parametrize("opset", [20, 22, 23, 25])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(ExportError, match=rf"opset={opset} is not made; allowed: 21, 24"):
        check_opset(opset)


def test_newer_operator_is_named() -> None:
    model = build("g (float[1, 2, 3, 4] x) => (float[1, 2, 3, 4] y) { y = Attention(x, x, x) }")
    with pytest.raises(ExportError, match="the operator is newer than that in Attention"):
        set_opset(model, 21)
    assert model.graph.opset_imports[""] == 24


def test_newer_type_is_named() -> None:
    # Cos knows bfloat16 since opset 22.
    model = build("g (bfloat16[2] x) => (bfloat16[2] y) { y = Cos(x) }")
    with pytest.raises(ExportError, match="bfloat16 inputs are newer than that in Cos"):
        set_opset(model, 21)


def test_newer_attribute_is_dropped_only_at_its_default() -> None:
    # Cast has round_mode since opset 24, "up" by default.
    text = 'g (float[2] x) => (float8e4m3fn[2] y) {{ y = Cast<to = 17, round_mode = "{}">(x) }}'
    model = build(text.format("up"))
    set_opset(model, 21)
    assert "round_mode" not in model.graph[0].attributes
    model = build(text.format("down"))
    with pytest.raises(ExportError, match="its attribute round_mode is newer"):
        set_opset(model, 21)
    assert "round_mode" in model.graph[0].attributes
