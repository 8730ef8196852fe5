"""The text tree of a graph."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir
import pytest

from export.errors import ExportError
from export.graph.view import describe_graph, split_body


def loop_body(bundle: Path) -> ir.Graph:
    model = ir.load(bundle / "model.onnx")
    (loop,) = [node for node in model.graph if node.op_type == "Loop"]
    return loop.attributes["body"].as_graph()


def test_tree_names_every_part(tiny_bundle: Path) -> None:
    lines = describe_graph(tiny_bundle / "model.onnx")
    assert len(lines) <= 60
    text = "\n".join(lines)
    assert re.search(r"model\.onnx: opset 24, IR 10, \d+ nodes, \d", lines[0])
    order = [
        "inputs",
        "prelude: 2 layers",
        "layers 0..1",
        "bridge (h + T h + t)",
        "loop: depth times",
        "pool",
        "controller",
        "attention",
        "mlp",
        "norm",
        "gate",
        "coda: 2 layers",
        "layers 2..3",
        "outputs",
    ]
    places = [next(i for i, line in enumerate(lines) if f"├─ {part}" in line) for part in order]
    assert places == sorted(places)
    # The tiny model: d 64, 259 tokens, tied; joined q, k and v: (4 + 2 * 2) heads of 16.
    assert "table  float [259, 64], 66.3 kB" in text
    assert "qkv  float [64, 128], 32.8 kB × 2" in text
    assert "weight  float [64, 64], 16.4 kB" in text
    assert "past_key_values.0..3.key|value  float [batch, 2, past_sequence, 16]" in text


def test_counts_add_up(tiny_bundle: Path) -> None:
    lines = describe_graph(tiny_bundle / "model.onnx")
    model = ir.load(tiny_bundle / "model.onnx")
    numbers = {}
    for line in lines:
        if found := re.match(r"├─ (prelude|loop|coda): .*?(\d+) nodes", line):
            numbers[found[1]] = int(found[2])
    total = int(re.search(r"(\d+) nodes", lines[0])[1])  # type: ignore[index]
    assert total == sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph))
    assert sum(numbers.values()) == total - 1  # the Loop itself
    inner = [int(n) for line in lines for n in re.findall(r"│  ├─ .*?: (\d+) nodes", line)]
    assert sum(inner) == sum(numbers.values())


def test_sections_hold_what_they_are_called_after(tiny_bundle: Path) -> None:
    sections = {section.name: section for section in split_body(loop_body(tiny_bundle))}
    kinds = {name: {n.op_type for n in s.nodes} for name, s in sections.items()}
    assert list(sections) == ["pool", "controller", "attention", "mlp", "norm", "gate"]
    assert "CumSum" in kinds["pool"]
    assert [name for name, ops in kinds.items() if "Softmax" in ops] == ["attention"]
    # A norm goes with what it feeds: one each before attention and mlp, and the step's own.
    norms = [name for name, s in sections.items() for n in s.nodes if n.op_type == "Pow"]
    assert norms == ["attention", "mlp", "norm"]
    assert "step.gate_weight" in sections["gate"].weights


def test_block_shows_its_layers_together(tiny_bundle: Path, block_bundle: Path) -> None:
    one, two = (
        {section.name: section for section in split_body(loop_body(path))}
        for path in (tiny_bundle, block_bundle)
    )
    assert list(one) == list(two)
    for name, layers in (("attention", 2), ("mlp", 2), ("controller", 1), ("gate", 1)):
        counts = [
            sum(node.op_type == "MatMul" for node in sections[name].nodes)
            for sections in (one, two)
        ]
        assert counts[1] == layers * counts[0], name
    text = "\n".join(describe_graph(block_bundle / "model.onnx"))
    assert "qkv  float [64, 140] and 3 more, 84.0 kB" in text


def test_broken_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="can't be read as ONNX"):
        describe_graph(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ExportError, match="can't be read as ONNX"):
        describe_graph(tmp_path / "text.onnx")
    empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}), ir_version=10)
    ir.save(empty, tmp_path / "empty.onnx")
    with pytest.raises(ExportError, match="holds 0 Loop nodes, not the 1"):
        describe_graph(tmp_path / "empty.onnx")
