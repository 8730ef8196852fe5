"""Writing a graph's weights: one layer's in memory at a time, and a disk that fills up."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from export.graph.compile import compile_graph
from export.graph.passes.weight_only import graphs_of
from export.graph.stitch import build_graph
from export.graph.storage import _content, save_graph
from export.graph.trace import plain_weights
from export.manifest import _count_bytes
from export.precision import PRECISIONS, Precision
from export.quantize.model import Quantization, quantize_model
from ouroboros import load_checkpoint
from runtime.bundle.reader import hash_file
from tests.support.paths import ROOT
from tests.support.processes import WITH_KEPT_TRACES, run_ouro
from tests.support.tiny import MAX_DEPTH
from tests.support.training import tiny_model


@pytest.mark.slow
def test_joined_weights_are_made_once_and_when_they_are_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[nn.Module] = []

    def count(layer: nn.Module, precision: Precision) -> dict[str, torch.Tensor]:
        joined.append(layer)
        return plain_weights(layer, precision)

    monkeypatch.setattr("export.graph.stitch.plain_weights", count)
    # The tiny model's norms too go to the data file, as a large model's do.
    monkeypatch.setattr("export.graph.storage.THRESHOLD_BYTES", 128)
    model, _ = load_checkpoint(tiny_checkpoint)
    graph, _ = build_graph(model, MAX_DEPTH)
    assert joined == []
    hashes = save_graph(graph, tmp_path / "model.onnx")
    assert hashes == {path.name: hash_file(path) for path in tmp_path.iterdir()}
    assert joined == [*model.prelude, *model.coda]
    assert (tmp_path / "model.onnx").stat().st_size < 200_000  # the weights are beside it
    written = ir.load(tmp_path / "model.onnx").graph.initializers["layers.3.down.weight"]
    expected = model.coda[1].mlp.down_proj.weight.T.numpy(force=True)
    assert written.const_value is not None
    assert np.array_equal(written.const_value.numpy(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"modulation": "free"}, {"bases": "per_step"}])
def test_a_step_reads_one_base_and_holds_none_that_it_can_not_reach(
    changes: dict[str, Any],
) -> None:
    """So that it counts as many bytes as with one base for all steps."""
    depth, found = 2, {}
    for name, more in (("one", {"bases": "mean"}), ("several", changes)):
        modulation = {"modulation": "static", **more}
        model = tiny_model(prelude=1, coda=1, max_depth=6, **modulation)
        graph, _ = compile_graph(model, PRECISIONS["fp32"], depth)
        (body,) = list(graphs_of(graph))[1:]
        shapes = [value.shape for key, value in body.initializers.items() if ".low_rank." in key]
        found[name] = _count_bytes(graph)["step_bytes"]
        if name == "several":
            assert shapes
            assert {shape[0] for shape in shapes if shape is not None} == {depth}
    assert found["several"] == pytest.approx(found["one"], rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_an_embedding_counts_as_the_entry_that_a_token_reads(
    tiny_checkpoint: Path, precision: str
) -> None:
    """Packed in words, which are looked up along the other dimension; a float one is the head."""
    model, _ = load_checkpoint(tiny_checkpoint)
    quantized = quantize_model(model, Quantization(8)) if precision == "int8" else None
    graph, _ = compile_graph(model, PRECISIONS[precision], MAX_DEPTH, quantized)
    outer, body = graphs_of(graph)
    values = {**outer.initializers, **body.initializers}
    stored = {name: value.const_value.nbytes for name, value in values.items()}
    packed = ("opening.table_words", "opening.table_scales", "opening.table_zero_words")
    table = sum(stored.get(name, 0) for name in packed)
    assert (table > 0) == (precision == "int8")
    counted = sum(_count_bytes(graph).values())
    assert 0.95 * sum(stored.values()) < counted + table < 1.01 * sum(stored.values())


def test_matrices_stored_as_integers_are_not_joined_as_floats(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    layer = model.prelude[0]
    weights = plain_weights(layer, PRECISIONS["int4"])
    content = {name for name, value in weights.items() if not value.is_meta}
    assert content == {name for name, value in weights.items() if value.ndim == 1}
    norm = weights["layer.norm_1.weight"]
    assert norm.data_ptr() == layer.input_layernorm.weight.data_ptr()
    assert not any(value.is_meta for value in layer.parameters())
    whole = plain_weights(layer, PRECISIONS["fp32"])
    assert {n: v.shape for n, v in weights.items()} == {n: v.shape for n, v in whole.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8])
def test_content_is_the_tensors_own_memory(dtype: type) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    tensor = ir.tensor(array)
    assert bytes(_content(tensor)) == tensor.tobytes()
    assert np.shares_memory(np.frombuffer(_content(tensor), np.uint8), array)
    turned = ir.tensor(array.T)
    assert bytes(_content(turned)) == turned.tobytes()


def test_content_of_four_bits_is_packed() -> None:
    packed = np.arange(6, dtype=np.uint8)
    tensor = ir.PackedTensor(packed, ir.DataType.INT4, shape=ir.Shape([3, 4]))
    assert bytes(_content(tensor)) == packed.tobytes()


@pytest.mark.slow
def test_half_precision_layers_are_written_as_such(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    graph, _ = build_graph(model, MAX_DEPTH, PRECISIONS["bf16"])
    save_graph(graph, tmp_path / "model.onnx")
    written = ir.load(tmp_path / "model.onnx").graph.initializers["layers.0.down.weight"]
    assert written.const_value is not None
    assert written.const_value.dtype == ir.DataType.BFLOAT16
    bits = written.const_value.numpy().view(np.int16).copy()
    found = torch.from_numpy(bits).view(torch.bfloat16)
    assert torch.equal(found, model.prelude[0].mlp.down_proj.weight.T.bfloat16())


def limit_files() -> None:
    """Lets no file grow past 200 KB: a write then fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@pytest.mark.slow
def test_full_disk_while_weights_are_written_keeps_the_old_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert (tiny_bundle / "model.onnx.data").stat().st_size > 200_000
    out = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = run_ouro(
        "export", tiny_checkpoint, out, "--max-depth", 5,
        code=WITH_KEPT_TRACES, cwd=ROOT, preexec_fn=limit_files,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {out}: can't write the bundle: ")
    assert result.stderr.endswith("; what was there is untouched\n")
    assert result.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]
