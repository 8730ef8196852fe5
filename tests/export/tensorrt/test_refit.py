"""New weights in an old plan, on stand-ins for CUDA and TensorRT."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from cli.app import app
from export import TrtOptions, export_bundle
from export.errors import ExportError
from export.tensorrt.builder import build_plans
from export.tensorrt.refit import changed_weights, find_refittable, refit_plans
from export.tensorrt.refit_plan import refit_plan
from ouroboros import load_checkpoint, save_checkpoint
from runtime.backends.machine import Machine
from runtime.backends.trt import TrtBackend
from runtime.backends.trt_flavours import TENSORRT, Installed
from runtime.bundle.manifest import Manifest
from runtime.bundle.plans import read_plan
from runtime.bundle.reader import hash_file, open_bundle, read_manifest
from runtime.errors import BundleError, EngineError
from runtime.parity.cases import load_cases, recorded_results
from runtime.parity.replay import run
from runtime.parity.verdict import AMBIGUOUS, FAIL, PASS, Bounds, compare
from tests.support import fake_tensorrt
from tests.support.fake_cuda import FakeCuda, FakeTensorRT, stand_in_for_tensorrt
from tests.support.tensorrt import FACTS, HOPPER
from tests.support.tiny import MAX_DEPTH

NEWER = Installed(TENSORRT, "tests.support.fake_tensorrt", "11.0", "11.0", "13")


@pytest.fixture(scope="module")
def stand_ins() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_tensorrt(patch)
        yield


@pytest.fixture(scope="module")
def old(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, stand_ins: None) -> Path:
    """A bundle with a refittable plan of the tiny checkpoint."""
    out = tmp_path_factory.mktemp("old") / "bundle"
    options = TrtOptions(refit=True)
    export_bundle(tiny_checkpoint, out, max_depth=MAX_DEPTH, format="trt", trt=options)
    return out


def retrain(checkpoint: Path, out: Path) -> Path:
    """The checkpoint with every trained weight changed."""
    import torch

    model, tokenizer = load_checkpoint(checkpoint)
    with torch.no_grad():
        for weight in model.recurrent.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape) * 0.05)
    save_checkpoint(model, tokenizer, out, keep=())
    return out


def replay_plan(plan: bytes, manifest: Manifest, cases_of: Path) -> set[str]:
    """Verdicts of the cases of a bundle on a plan."""
    cuda, graph = FakeCuda(), manifest.graphs.onnx
    with TrtBackend(manifest.plans[0], graph, plan, FakeTensorRT(), cuda) as session:
        cases = load_cases(cases_of / "cases.safetensors")
        results = run(cases, session, manifest)
    bounds = Bounds(manifest.parity.relative_l2)
    return {row.verdict for row in compare(results, recorded_results(cases), bounds).rows}


def read_spec(bundle: Path) -> tuple[Manifest, bytes]:
    manifest = open_bundle(bundle).manifest
    (spec,) = manifest.plans
    return manifest, read_plan(bundle / spec.file, manifest.files[spec.file].sha256)


@pytest.mark.slow
def test_new_checkpoint_goes_into_the_old_plan(
    old: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    newer, out = retrain(tiny_checkpoint, tmp_path / "newer"), tmp_path / "out"
    command = ["export", str(newer), str(out), "--format", "trt", "--max-depth", str(MAX_DEPTH)]
    done = CliRunner().invoke(app, [*command, "--refit-from", str(old)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "refitting plans/trt-sm90.plan of" in done.output

    (before, built), (manifest, refitted) = read_spec(old), read_spec(out)
    ids = [fake_tensorrt.Engine(plan).facts["build"] for plan in (built, refitted)]
    assert ids[0] == ids[1]  # not a new build
    (spec,) = manifest.plans
    assert spec.refittable
    assert spec.graph_sha256 != before.plans[0].graph_sha256
    assert dataclasses.replace(spec, graph_sha256="") == dataclasses.replace(
        before.plans[0], graph_sha256=""
    )
    assert replay_plan(refitted, manifest, out) <= {PASS, AMBIGUOUS}
    assert FAIL in replay_plan(built, manifest, out)  # the old weights are other ones


@pytest.mark.parametrize(
    ("options", "facts", "words"),
    [
        ({}, {"precision": "fp16"}, "is of precision=fp32, asked for is fp16"),
        ({}, {"max_depth": 3}, "is of max_depth=5, asked for is 3"),
        ({"flavour": "rtx"}, {}, "is of flavour=trt, asked for is rtx"),
        ({"compute_capabilities": ("8.9",)}, {}, "capabilities=9.0, asked for is 8.9"),
        ({"max_batch": 8}, {}, r"input_ids up to \[4, 1\], asked for is \[8, 1\]; give the --max-"),
        ({"max_seq": 64}, {}, r"attention_mask up to \[4, 513\], asked for is \[4, 65\]"),
        ({"timing_cache": Path("cache")}, {}, "timing_cache is of a build, and refit_from builds"),
        ({"workspace_mb": 64}, {}, "workspace_mb is of a build, and refit_from builds nothing"),
        ({"opt_batch": 2}, {}, "opt_batch is of a build, and refit_from builds nothing"),
        ({"opt_past": 64}, {}, "opt_past is of a build"),
        ({"opt_new": 32}, {}, "opt_new is of a build"),
    ],
)
def test_plan_for_something_else_is_refused(
    old: Path, options: dict[str, Any], facts: dict[str, Any], words: str
) -> None:
    asked, model = TrtOptions(**options, refit_from=old), dataclasses.replace(FACTS, **facts)
    with pytest.raises(ExportError, match=words) as caught:
        find_refittable(old, asked, model)
    assert "\n" not in str(caught.value)
    # What is served best is no limit.
    find_refittable(old, TrtOptions(opt_past=64), dataclasses.replace(FACTS, default_depth=1))


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (Machine(None, ()), "CUDA shows none here; run this on that machine$"),
        (Machine(HOPPER, ()), "not installed; pip install tensorrt-cu13$"),
        (Machine(HOPPER, (NEWER,)), r"built with TensorRT 10\.14\.1, installed here is 11\.0"),
    ],
)
def test_plan_that_does_not_fit_the_machine_is_refused(
    old: Path, machine: Machine, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.tensorrt.refit.find_machine", lambda: machine)
    with pytest.raises(ExportError, match=words):
        find_refittable(old, TrtOptions(), FACTS)


def test_bundle_without_a_refittable_plan_is_refused(
    tiny_bundle: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match="holds no plan; export it with --format trt"):
        find_refittable(tiny_bundle, TrtOptions(), FACTS)
    manifest = read_manifest(old)
    fixed = dataclasses.replace(manifest.plans[0], refittable=False)
    monkeypatch.setattr(
        "export.tensorrt.refit.read_manifest",
        lambda _: dataclasses.replace(manifest, plans=(fixed,)),
    )
    with pytest.raises(ExportError, match=r"sm90\.plan was built without refit; export it with"):
        find_refittable(old, TrtOptions(), FACTS)


def test_options_of_plans_are_refused_without_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for options in (TrtOptions(refit_from=tmp_path), TrtOptions(timing_cache=tmp_path / "c")):
        with pytest.raises(ExportError, match="format trt"):
            export_bundle(tiny_checkpoint, tmp_path / "out", trt=options)


def write_weights(file: Path, operator: str = "Sum", **weights: np.ndarray) -> Path:
    """A graph that adds up its weights, all in a data file."""
    names = list(weights)
    nodes = [
        helper.make_node("Cast", [name], [f"{name}_f"], to=TensorProto.FLOAT) for name in names
    ]
    nodes.append(helper.make_node(operator, [f"{name}_f" for name in names], ["y"]))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [512])
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    file.parent.mkdir()
    onnx.save(model, file, save_as_external_data=True, location="g.data", size_threshold=0)
    return file


def test_only_floating_point_weights_may_differ(tmp_path: Path) -> None:
    same, other = np.ones(512, np.float32), np.full(512, 2, np.float32)
    old = write_weights(tmp_path / "a/g.onnx", one=same, two=same, whole=np.ones(512, np.int8))
    new = write_weights(tmp_path / "b/g.onnx", one=same, two=other, whole=np.ones(512, np.int8))
    assert changed_weights(old, new) == ["two"]
    new = write_weights(tmp_path / "c/g.onnx", one=same, two=same, whole=np.zeros(512, np.int8))
    with pytest.raises(ExportError, match="the weight whole has changed and is int8, of which"):
        changed_weights(old, new)
    fewer = write_weights(tmp_path / "d/g.onnx", one=same, two=same)
    ints = np.ones(512, np.int8)
    # The same weights in other arithmetic, as of another pooling: TensorRT would take them.
    other = write_weights(tmp_path / "e/g.onnx", "Max", one=same, two=same, whole=ints)
    for new in (fewer, other):
        with pytest.raises(ExportError, match="differ in more than weights"):
            changed_weights(old, new)


def test_weight_that_the_plan_holds_fixed_is_refused(old: Path) -> None:
    plan, graph = read_spec(old)[1], old / "model.onnx"
    refit_plan(plan, "p.plan", graph, ["step.modulate.heads"], fake_tensorrt)
    with pytest.raises(EngineError, match=r"p\.plan holds the weight opening\.x fixed, which"):
        refit_plan(plan, "p.plan", graph, ["step.modulate.heads", "opening.x"], fake_tensorrt)
    with pytest.raises(EngineError, match=r"p\.plan: TensorRT cannot load it"):
        refit_plan(b"", "p.plan", graph, [], fake_tensorrt)


def test_graph_without_replaceable_weights_is_not_built(tmp_path: Path, stand_ins: None) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in "xy")
    named = {"depth": [1], "input_ids": ["batch", "sequence"], "logit_index": ["batch", "logits"]}
    fed = [helper.make_tensor_value_info(n, TensorProto.INT64, dims) for n, dims in named.items()]
    graph = helper.make_graph([helper.make_node("Tanh", ["x"], ["y"])], "g", [x, *fed], [y])
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    with pytest.raises(ExportError, match="TensorRT keeps no weight of this graph replac"):
        build_plans(tmp_path / "g.onnx", tmp_path / "plans", TrtOptions(refit=True), FACTS)
    assert not (tmp_path / "plans").exists()


def test_hash_of_the_plan_is_handed_on(old: Path, tmp_path: Path) -> None:
    graph = read_manifest(old).graphs.onnx
    hashes = {name: read_manifest(old).files[name].sha256 for name in (graph.file, *graph.data)}
    known, out = dict(hashes), tmp_path / "plans"
    (spec,), made = refit_plans(old / "model.onnx", out, old, TrtOptions(), FACTS, hashes=known)
    assert made == {spec.file: hash_file(tmp_path / spec.file)}
    assert known == hashes


def test_changed_plan_is_not_refitted(old: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "copy", tmp_path / "plans"
    shutil.copytree(old, copy)
    file = copy / read_manifest(old).plans[0].file
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="is damaged or was changed"):
        refit_plans(old / "model.onnx", out, copy, TrtOptions(), FACTS)
    assert not out.exists()


def test_graph_of_another_model_leaves_nothing(
    old: Path, halting_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"differ in more than weights \(layers, rank, pooling"):
        refit_plans(halting_bundle / "model.onnx", tmp_path / "e", old, TrtOptions(), FACTS)
    assert not (tmp_path / "e").exists()
