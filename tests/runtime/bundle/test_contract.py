"""The contract: a tensor that is added to it is followed everywhere, or refused by name."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export import export_bundle
from export.options import TrtOptions
from export.tensorrt.options import make_profiles
from export.triton.config import render_config
from runtime import BundleError, Engine, EngineError
from runtime.backends.cuda import output_shapes
from runtime.bundle import contract, open_bundle
from runtime.parity.check import check_bundle
from tests.support.paths import ROOT

CACHES = (contract.PAST_PREFIX, contract.NEW_PREFIX)
# What is in quotes and called like a tensor, but is none: arguments of the PyTorch model and fields
# of its configuration, keys of manifests, cases and reports, columns of tables.
OTHER_WORDS = {
    "ouroboros": {
        "input_ids", "position_ids", "attention_mask", "depth", "logit_index", "halt_threshold",
        "logits",
    },
    "export/case_run.py": {"halt_threshold"},
    "export/manifest.py": {"depth"},
    "runtime/bundle/specs.py": {"depth"},
    "runtime/cpp/tools/fuzz.py": {"depth"},  # an input of another graph
    "runtime/measure/loss.py": {"input_ids"},  # of a tokenizer
    "runtime/parity/cases.py": {"depth"},
    "runtime/parity/picture.py": {"depth"},
    "runtime/parity/verdict.py": {"depth"},
    "cli": {"depth"},
    "bench": {"depth"},
    "bench/scale.py": {"logits"},  # a part of the memory
    "bench/train_form.py": {"input_ids", "position_ids"},
    "study": {"depth"},
    "demo": {"depth"},
}  # fmt: skip

MADE_UP = contract.Tensor("made_up", "float32", (contract.BATCH, contract.ModelNumber("head_dim")))


def test_made_up_input_is_followed_or_refused_by_name(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "PLAIN_INPUTS", (*contract.PLAIN_INPUTS, MADE_UP))
        with pytest.raises(BundleError, match="lacks the input made_up"):
            open_bundle(tiny_bundle)
        export_bundle(tiny_checkpoint, tmp_path / "bundle", max_depth=2)
        bundle = open_bundle(tmp_path / "bundle")
        (listed,) = (one for one in bundle.manifest.graphs.onnx.inputs if one.name == "made_up")
        assert listed.shape == ("batch", bundle.manifest.model.head_dim)
        config = model_config_pb2.ModelConfig()
        text_format.Parse(render_config(bundle, "tiny", "cpu", 1), config)
        assert "made_up" in [one.name for one in config.input]
        profiles = make_profiles(
            bundle.manifest.graphs.onnx.inputs, TrtOptions(), 64, 2, 2, whole_prompt=False
        )
        assert all("made_up" in [one.name for one in p.shapes] for p in profiles)
        with (
            Engine.open(tmp_path / "bundle", threads=1) as engine,
            pytest.raises(EngineError, match="the graph has made_up, which is not known here"),
        ):
            engine.generate("x", depth=1, max_new_tokens=1)
        report = check_bundle(tmp_path / "bundle", backend="cpu")
        assert report.verdict == "FAIL"
        others = {row.reason for row in report.rows if "made_up" not in row.reason}
        assert all(reason.startswith("the case before it, ") for reason in others)
        assert len(others) < len(report.rows)
    with pytest.raises(BundleError, match="input 'made_up' is unknown here"):
        open_bundle(tmp_path / "bundle")


def test_block_has_entries_for_every_layer_of_a_step(block_bundle: Path) -> None:
    """Profiles, Triton's dimensions and shapes on a GPU follow `2 * slots` and `2 * depth`."""
    bundle = open_bundle(block_bundle)
    graph = bundle.manifest.graphs.onnx
    name = contract.past_name(contract.RECURRENT, "key")
    for profile in make_profiles(graph.inputs, TrtOptions(max_batch=3), 64, 5, 4):
        ranges = {one.name: one for one in profile.shapes}
        assert [ranges[name].min[1], ranges[name].opt[1], ranges[name].max[1]] == [2, 8, 10]
        assert ranges[contract.PAST_POOL_SUM].max[1] == 5
    config = model_config_pb2.ModelConfig()
    text_format.Parse(render_config(bundle, "block", "cpu", 1), config)
    assert {one.name: list(one.dims) for one in config.input}[name] == [-1, -1, 2, -1, 16]
    shapes = {one.name: tuple(3 for _ in one.shape) for one in graph.inputs}
    inputs = {one: np.zeros(shape) for one, shape in shapes.items()}
    inputs[contract.DEPTH] = np.array([4])
    inputs[name] = np.zeros((3, 6, 2, 3, 16))
    found = output_shapes(graph, inputs)
    assert found[contract.new_name(contract.RECURRENT, "key")] == (3, 8, 2, 3, 16)
    assert found[contract.POOL_SUM] == (3, 4, 3, 64)


@pytest.mark.parametrize(
    ("size", "terms", "number"),
    [
        ("slots", [(1, "slots")], 5),
        ("4 * slots", [(4, "slots")], 20),
        ("slots + new", [(1, "slots"), (1, "new")], 8),
        ("2 * slots + 3 * new", [(2, "slots"), (3, "new")], 19),
    ],
)
def test_sizes_are_sums_with_factors(size: str, terms: list[tuple[int, str]], number: int) -> None:
    assert contract.parse_size(size) == terms
    assert contract.resolve_size(size, {"slots": 5, "new": 3}) == number
    assert contract.resolve_size(7, {}) == 7
    with pytest.raises(KeyError, match="slots"):
        contract.resolve_size(size, {"new": 3})


@cache
def tensor_names() -> set[str]:
    """What every graph calls its tensors, those of its cache aside, which begin as CACHES do."""
    model = SimpleNamespace(num_layers=1, recurrent_layers=1, halting=True)
    tensors = (*contract.input_tensors(model), *contract.output_tensors(model))
    return {one.name for one in tensors if not one.name.startswith(CACHES)}


def spelled_in(text: str) -> set[str]:
    """The names that a text in quotes spells."""
    return ({text} & tensor_names()) | {prefix for prefix in CACHES if prefix in text}


def test_nobody_else_spells_a_tensor() -> None:
    """A stranger does, by docs/bundle.md: examples/ shows one. Tests say what they expect."""
    home = Path(contract.__file__).resolve()
    found: dict[str, set[str]] = {}
    for room in ("ouroboros", "export", "runtime", "cli", "bench", "study", "demo", "plugins"):
        files = [file for file in (ROOT / room).rglob("*.py") if file != home]
        assert files, "the room has moved"
        for file in files:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    path = str(file.relative_to(ROOT))
                    place = path if path in OTHER_WORDS else room
                    found.setdefault(place, set()).update(spelled_in(node.value))
    assert {place: names for place, names in found.items() if names} == OTHER_WORDS


def test_nobody_else_spells_a_tensor_in_cpp() -> None:
    """In the program, `depth` is a column of its tables and a key of cases and reports."""
    home = ROOT / "runtime/cpp"
    found: dict[str, set[str]] = {"src": set(), "cli": set()}
    for folder, names in found.items():
        files = [file for file in (home / folder).rglob("*.?pp") if file.name != "contract.hpp"]
        assert len(files) > 10, "the library has moved"
        for file in files:
            for text in re.findall(r'"((?:[^"\\\n]|\\.)*)"', file.read_text(encoding="utf-8")):
                names |= spelled_in(text)
    assert found == {"src": set(), "cli": {contract.DEPTH}}
