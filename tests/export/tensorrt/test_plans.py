"""Plans that were built: as described, of their graph, and loaded only unchanged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from export import export_bundle
from export.options import TrtOptions
from export.tensorrt.builder import build_plans
from runtime import BundleError, EngineError
from runtime.backends.gpu import describe_gpu
from runtime.backends.machine import Machine, check_plan_fits
from runtime.backends.trt import choose_profile, open_plan
from runtime.bundle.plans import PlanSpec, check_plan_graph
from runtime.bundle.reader import hash_file, open_bundle, read_manifest
from runtime.parity.cases import load_cases
from tests.support.fake_cuda import stand_in_for_builder
from tests.support.tensorrt import CENTRE, FACTS, GPU, HERE, PLANS, builds
from tests.support.tiny import MAX_DEPTH


@pytest.fixture(scope="module")
def plan(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PlanSpec, Path]:
    """The tiny bundle's plan for compute capability 8.9, and the folder above its own."""
    folder = tmp_path_factory.mktemp("plans")
    options = TrtOptions(flavour="rtx", compute_capabilities=("8.9",), max_batch=3, max_seq=100)
    (spec,), _ = build_plans(tiny_bundle / "model.onnx", folder / PLANS, options, FACTS)
    return spec, folder


@builds
def test_plan_is_described_as_built(plan: tuple[PlanSpec, Path], tiny_bundle: Path) -> None:
    spec, folder = plan
    assert (folder / spec.file).read_bytes()[:8].strip(b"\0")
    assert [file.name for file in (folder / PLANS).iterdir()] == ["rtx-sm89.plan"]
    assert spec.file == "plans/rtx-sm89.plan"
    assert (spec.flavour, spec.version, spec.cuda) == ("tensorrt_rtx", HERE.version, "13")
    assert spec.compute_capabilities == ("8.9",)
    assert not spec.refittable
    assert spec.max_new_tokens >= spec.max_logits > 0
    check_plan_fits(spec, Machine(GPU, (HERE,)))


def test_hashes_that_the_graph_was_written_with_are_not_taken_again(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.tensorrt.plan_files.hash_file", lambda file: pytest.fail(str(file)))
    stand_in_for_builder(monkeypatch, CENTRE)
    manifest = read_manifest(tiny_bundle)
    graph = manifest.graphs.onnx
    hashes = {name: manifest.files[name].sha256 for name in (graph.file, *graph.data)}
    known = dict(hashes)
    (spec,), made = build_plans(
        tiny_bundle / "model.onnx", tmp_path / PLANS, TrtOptions(), FACTS, hashes=known
    )
    check_plan_graph(spec, hashes)
    assert made == {spec.file: hash_file(tmp_path / spec.file)}
    assert known == hashes


def test_tensorrt_is_given_a_copy_whose_depth_is_a_vector(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    before = {file.name: hash_file(file) for file in tiny_bundle.iterdir()}
    builder = stand_in_for_builder(monkeypatch, CENTRE)
    (spec,), _ = build_plans(tiny_bundle / "model.onnx", tmp_path / PLANS, TrtOptions(), FACTS)

    graph = read_manifest(tiny_bundle).graphs.onnx
    assert builder.shapes == {
        one.name: [size if isinstance(size, int) else -1 for size in one.shape] or [1]
        for one in graph.inputs
    }
    assert spec.max_new_tokens >= spec.max_logits > 0
    assert [file.name for file in (tmp_path / PLANS).iterdir()] == ["trt-sm90.plan"]
    assert {file.name: hash_file(file) for file in tiny_bundle.iterdir()} == before
    check_plan_graph(spec, {name: before[name] for name in (graph.file, *graph.data)})

    session = onnxruntime.InferenceSession(
        builder.graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    case = next(c for c in load_cases(tiny_bundle / "cases.safetensors") if c.depth == 4)
    (found,) = session.run(["logits"], {**case.inputs, "depth": np.array([4])})
    np.testing.assert_allclose(found, case.outputs["logits"], rtol=1e-3, atol=1e-4)


@builds
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_exported_bundle_holds_a_plan_that_takes_a_vector(
    tiny_checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    options = TrtOptions(flavour="rtx", compute_capabilities=("8.9",))
    report = export_bundle(
        tiny_checkpoint,
        tmp_path / "out",
        max_depth=MAX_DEPTH,
        precision=precision,
        format="trt",
        trt=options,
    )
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.plans == report.plans
    (spec,) = manifest.plans
    assert spec.max_new_tokens >= spec.max_logits > 0
    assert [profile.values[0].max for profile in spec.profiles] == [(MAX_DEPTH,)] * 2
    assert next(one for one in manifest.graphs.onnx.inputs if one.name == "depth").shape == (1,)
    assert [file.name for file in (tmp_path / "out" / PLANS).iterdir()] == ["rtx-sm89.plan"]


@builds
def test_plan_names_the_graph_it_was_built_from(
    plan: tuple[PlanSpec, Path], tiny_bundle: Path
) -> None:
    graph, files = read_manifest(tiny_bundle).graphs.onnx, read_manifest(tiny_bundle).files
    hashes = {name: files[name].sha256 for name in (graph.file, *graph.data)}
    check_plan_graph(plan[0], hashes)
    hashes[graph.data[0]] = "f" * 64
    with pytest.raises(BundleError, match="different checkpoints"):
        check_plan_graph(plan[0], hashes)


@builds
def test_plan_entry_is_plain_json(plan: tuple[PlanSpec, Path]) -> None:
    entry = dataclasses.asdict(plan[0])
    again = json.loads(json.dumps(entry))
    assert again["profiles"][0]["values"] == [
        {"name": "depth", "min": [1], "opt": [3], "max": [MAX_DEPTH]}
    ]
    assert {one["name"]: one["max"] for one in again["profiles"][1]["shapes"]}["input_ids"] == [
        3,
        128,
    ]


@builds
def test_recorded_cases_find_a_profile(plan: tuple[PlanSpec, Path], tiny_bundle: Path) -> None:
    # Every recorded call of the bundle must be one that its plan can serve.
    names = [profile.name for profile in plan[0].profiles]
    kinds = {
        case.kind: names[choose_profile(plan[0].profiles, case.inputs)]
        for case in load_cases(tiny_bundle / "cases.safetensors")
        if case.kind in ("prefill", "padded")
    }
    assert kinds == {"prefill": "prefill", "padded": "prefill"}


@builds
def test_changed_plan_never_reaches_tensorrt(
    plan: tuple[PlanSpec, Path], tiny_bundle: Path
) -> None:
    spec, folder = plan
    graph = read_manifest(tiny_bundle).graphs.onnx
    with pytest.raises(BundleError, match="it was not loaded"):
        open_plan(folder / spec.file, spec, graph, "0" * 64, Machine(GPU, (HERE,)))


@builds
@pytest.mark.skipif(describe_gpu() is not None, reason="says what happens without a GPU")
def test_right_plan_without_a_driver_is_one_line(
    plan: tuple[PlanSpec, Path], tiny_bundle: Path
) -> None:
    import hashlib

    spec, folder = plan
    graph, file = read_manifest(tiny_bundle).graphs.onnx, folder / spec.file
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(EngineError, match="CUDA: cudaStreamCreate failed with cudaError"):
        open_plan(file, spec, graph, digest, Machine(GPU, (HERE,)))
