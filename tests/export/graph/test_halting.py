"""A model with a halter as a bundle: its graph, its recorded cases, and what they can tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from export import export_bundle
from export.errors import ExportError
from export.graph.compile import compile_graph
from export.graph.halting import require_halter
from export.halt_scores import draw_thresholds
from export.precision import PRECISIONS
from ouroboros import load_checkpoint, save_checkpoint
from runtime.bundle.contract import DEPTH_USED, HALT_THRESHOLD
from runtime.bundle.reader import read_manifest
from runtime.parity.cases import HALT_SCORES, load_cases, recorded_results
from runtime.parity.check import check_bundle, missing_cases
from runtime.parity.comparison import measure
from runtime.parity.verdict import AMBIGUOUS, FAIL, PASS, judge
from tests.support.halting import give_halter, write_halting
from tests.support.tiny import MAX_DEPTH


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        pytest.param("confidence", "fp32", marks=pytest.mark.slow),
        pytest.param("distance", "int8", marks=pytest.mark.slow),
        pytest.param("trained", "fp16", marks=pytest.mark.slow),
    ],
)
def test_a_halter_is_exported_and_proven(
    tiny_checkpoint: Path, tmp_path: Path, kind: str, precision: str
) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    write_halting(tiny_checkpoint, checkpoint, kind)
    export_bundle(checkpoint, bundle, max_depth=MAX_DEPTH, precision=precision)
    manifest = read_manifest(bundle)
    assert manifest.model.halting
    assert manifest.depth.halting is not None
    assert (manifest.depth.halting.kind, manifest.depth.halting.max) == (kind, 4)
    report = check_bundle(bundle, threads=1)
    assert report.verdict in (PASS, AMBIGUOUS), [row for row in report.rows if row.reason]
    judged = [row for row in report.rows if row.measurement.output == DEPTH_USED]
    assert {row.measurement.kind for row in judged} >= {"prefill", "decode", "padded", "halting"}
    chosen = [
        case.outputs[DEPTH_USED].tolist()
        for case in load_cases(bundle / "cases.safetensors")
        if case.kind == "halting"
    ]
    assert chosen
    assert any(len(set(depths)) > 1 or min(depths) < MAX_DEPTH - 1 for depths in chosen)


@pytest.mark.parametrize(("precision", "trt"), [("int8", False), ("int4", False), ("fp16", True)])
def test_confidence_is_refused_where_it_is_not_built(precision: str, trt: bool) -> None:
    require_halter("trained", PRECISIONS[precision], trt)
    with pytest.raises(ExportError, match=r"reads the LM head in every step.*--kind distance"):
        require_halter("confidence", PRECISIONS[precision], trt)


def test_a_float32_bundle_passes(halting_bundle: Path) -> None:
    report = check_bundle(halting_bundle, threads=1)
    assert report.verdict == PASS
    assert report.worst_relative_l2 < 1e-5


def test_a_model_without_a_halter_has_nothing_of_it(tiny_checkpoint: Path) -> None:
    """Not one node: the body, the inputs and the outputs are those of the step alone."""
    graph, _ = compile_graph(load_checkpoint(tiny_checkpoint)[0], PRECISIONS["fp32"], MAX_DEPTH)
    names = {str(value.name) for value in (*graph.graph.inputs, *graph.graph.outputs)}
    assert not names & {HALT_THRESHOLD, DEPTH_USED}
    (loop,) = (node for node in graph.graph if node.op_type == "Loop")
    assert len(loop.outputs) == 4
    every = ir.traversal.RecursiveGraphIterator(graph.graph)
    assert not [node for node in every if "halting" in str(node.name)]


@pytest.mark.slow
def test_halting_is_computed_in_float32(tiny_checkpoint: Path) -> None:
    model = give_halter(load_checkpoint(tiny_checkpoint)[0], "trained")
    graph, _ = compile_graph(model, PRECISIONS["fp16"], MAX_DEPTH)
    (loop,) = (node for node in graph.graph if node.op_type == "Loop")
    body = loop.attributes["body"].as_graph()
    own = {name: one for name, one in body.initializers.items() if "halt_" in name}
    assert own
    assert {one.dtype for one in own.values()} == {ir.DataType.FLOAT}


def test_a_depth_within_the_score_s_error_is_a_tie_and_one_beyond_it_is_not(
    halting_bundle: Path,
) -> None:
    case = next(c for c in load_cases(halting_bundle / "cases.safetensors") if c.kind == "halting")
    (reference,) = recorded_results([case])
    assert reference.threshold is not None
    other = case.outputs[DEPTH_USED].copy()
    other[0] -= 1 if other[0] > 1 else -1
    place = min(int(other[0]), int(case.outputs[DEPTH_USED][0])) - 1
    outputs = {name: one for name, one in case.outputs.items() if name != HALT_SCORES}
    changed = {name: one.copy() for name, one in outputs.items()} | {DEPTH_USED: other}
    changed["logits"][0] += 1.0  # as of another depth
    result = dataclasses.replace(reference, outputs=changed)
    rows, _ = judge(measure(result, reference), 1e-5)
    assert rows[0].verdict == FAIL
    assert "another depth in row 0" in rows[0].reason
    assert all(row.verdict == PASS for row in rows[1:])  # of the rows that agree
    near = {**case.outputs, HALT_SCORES: case.outputs[HALT_SCORES].copy()}
    near[HALT_SCORES][0, place] = reference.threshold + 1e-6
    tied = dataclasses.replace(reference, outputs=near)
    rows, _ = judge(measure(result, tied), 1e-5)
    assert rows[0].verdict == AMBIGUOUS


def test_a_recording_without_a_halting_case_is_named(halting_bundle: Path) -> None:
    cases = load_cases(halting_bundle / "cases.safetensors")
    depths = range(1, MAX_DEPTH + 1)
    assert missing_cases(cases, depths, halting=True) == []
    rest = [case for case in cases if case.kind != "halting"]
    assert missing_cases(rest, depths, halting=True) == ["no halting case is recorded"]


@pytest.mark.slow
def test_a_wrong_halter_is_found(
    halting_checkpoint: Path, halting_bundle: Path, tmp_path: Path
) -> None:
    """Other weights in the graph than in PyTorch: the recorded depths tell."""
    cases = load_cases(halting_bundle / "cases.safetensors")
    model, tokenizer = load_checkpoint(halting_checkpoint)
    with torch.no_grad():
        model.halter.weight.neg_()
    save_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", max_depth=MAX_DEPTH)
    report = check_bundle(tmp_path / "bundle", cases=cases, threads=1)
    failed = {row.measurement.output for row in report.rows if row.verdict == FAIL}
    assert DEPTH_USED in failed


def test_thresholds_tell_rows_apart_and_lie_far_from_scores() -> None:
    scores = np.array([[0.1, 0.2, 0.9, 1.0], [0.3, 0.8, 0.9, 1.0], [0.05, 0.1, 0.15, 0.2]])
    first, _ = draw_thresholds(scores)
    reached = scores >= first
    reached[:, -1] = True
    assert len(set(reached.argmax(1))) == 3
    assert np.abs(scores - first).min() > 0.01
    assert draw_thresholds(np.ones((2, 1))) == [0.5]
