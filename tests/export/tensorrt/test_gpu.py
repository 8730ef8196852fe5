"""What only a GPU can show: a plan built here, against PyTorch's recorded outputs. `-m gpu`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir
import pytest

from export import export_bundle
from export.errors import ExportError
from export.options import TrtOptions
from export.tensorrt.builder import GraphFacts, build_plans
from export.tensorrt.plan_files import write_plan_graph
from export.tensorrt.refit import changed_weights
from export.tensorrt.refit_plan import refit_plan
from ouroboros import load_checkpoint, save_checkpoint
from runtime.backends.machine import find_machine
from runtime.backends.trt import TrtBackend, open_plan
from runtime.backends.trt_flavours import load_module
from runtime.bundle.plans import PlanSpec
from runtime.bundle.reader import read_manifest
from runtime.parity.cases import REQUIRED, Case, load_cases, recorded_results
from runtime.parity.replay import run
from runtime.parity.verdict import AMBIGUOUS, PASS, Bounds, compare
from tests.support.builders import find_builders
from tests.support.tiny import MAX_DEPTH

pytestmark = pytest.mark.gpu
FACTS = GraphFacts(max_depth=MAX_DEPTH, default_depth=3, max_positions=512, precision="fp32")
FLAVOURS = ("trt", "rtx")


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    """Each TensorRT that can build for this machine's GPU."""
    if request.param not in find_builders():
        pytest.skip(f"--trt {request.param} is not installed or does not build for this GPU")
    return str(request.param)


Build = Callable[..., tuple[PlanSpec, Path]]


@pytest.fixture
def build(flavour: str) -> Build:
    """Builds a plan of a bundle for this machine's GPU; gives its entry and its file."""

    def make(bundle: Path, folder: Path, **options: object) -> tuple[PlanSpec, Path]:
        asked = TrtOptions(flavour=flavour, max_seq=128, **options)  # type: ignore[arg-type]
        (spec,), _ = build_plans(bundle / "model.onnx", folder / "plans", asked, FACTS)
        return spec, folder / spec.file

    return make


def open_file(spec: PlanSpec, file: Path, bundle: Path) -> TrtBackend:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return open_plan(file, spec, read_manifest(bundle).graphs.onnx, digest, find_machine())


def failures(session: TrtBackend, bundle: Path, cases: list[Case]) -> list[str]:
    """What of the recorded cases a plan does not compute as PyTorch did."""
    manifest = read_manifest(bundle)
    bounds = Bounds(manifest.parity.relative_l2)
    rows = compare(run(cases, session, manifest), recorded_results(cases), bounds).rows
    return [
        f"{row.measurement.case}: {row.reason}"
        for row in rows
        if row.verdict not in (PASS, AMBIGUOUS)
    ]


@pytest.fixture
def session(build: Build, tiny_bundle: Path, tmp_path: Path) -> Iterator[TrtBackend]:
    with open_file(*build(tiny_bundle, tmp_path), tiny_bundle) as opened:
        yield opened


def test_plan_gives_what_pytorch_gave_at_every_depth(
    session: TrtBackend, tiny_bundle: Path
) -> None:
    cases = load_cases(tiny_bundle / "cases.safetensors")
    assert {case.kind for case in cases} == set(REQUIRED)
    assert {case.depth for case in cases} == set(range(1, MAX_DEPTH + 1))
    assert failures(session, tiny_bundle, cases) == []


def test_plan_of_one_row_gives_what_pytorch_gave(
    build: Build, tiny_bundle: Path, tmp_path: Path
) -> None:
    cases = load_cases(tiny_bundle / "cases.safetensors")
    with open_file(*build(tiny_bundle, tmp_path, max_batch=1), tiny_bundle) as opened:
        assert opened.max_batch == 1
        assert failures(opened, tiny_bundle, cases) == []


def test_plan_takes_depth_as_a_vector_on_the_host(session: TrtBackend) -> None:
    # Source: what Triton's TensorRT backend compares, CompareShapeDimsSupported.
    engine = session._engine
    assert tuple(engine.get_tensor_shape("depth")) == (1,)
    shape_inputs = {
        one.name for one in session.graph.inputs if engine.is_shape_inference_io(one.name)
    }
    assert shape_inputs == {"depth"}


def test_second_build_starts_from_the_timing_cache(
    build: Build, flavour: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    if flavour == "rtx":
        pytest.skip("TensorRT for RTX has no timing cache")
    cache, sizes = tmp_path / "kernels.cache", []
    for number in range(2):
        build(tiny_bundle, tmp_path / str(number), timing_cache=cache)
        sizes.append(cache.stat().st_size)
    assert sizes[0] > 0
    assert sizes[1] >= sizes[0]
    cache.write_bytes(b"no timing cache")
    with pytest.raises(ExportError, match=r"timing_cache=.* is not of TensorRT"):
        build(tiny_bundle, tmp_path / "2", timing_cache=cache)


def test_refitted_plan_computes_with_the_new_weights(
    build: Build, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    # A plan of other trained weights, with those of the tiny bundle put into it.
    import torch

    model, tokenizer = load_checkpoint(tiny_checkpoint)
    with torch.no_grad():
        for weight in model.recurrent.parameters():
            if weight.requires_grad:
                weight.mul_(1.1)
    save_checkpoint(model, tokenizer, tmp_path / "other", keep=())
    other = tmp_path / "bundle"
    export_bundle(tmp_path / "other", other, max_depth=MAX_DEPTH)
    spec, file = build(other, tmp_path, refit=True)
    assert spec.refittable
    cases = load_cases(tiny_bundle / "cases.safetensors")
    with open_file(spec, file, tiny_bundle) as opened:
        assert failures(opened, tiny_bundle, cases) != []

    (installed,) = (one for one in find_machine().installed if one.flavour.name == spec.flavour)
    changed = changed_weights(other / "model.onnx", tiny_bundle / "model.onnx")
    (tmp_path / "graph").mkdir()
    graph = write_plan_graph(ir.load(tiny_bundle / "model.onnx"), tmp_path / "graph")
    refitted = tmp_path / "refitted.plan"
    refitted.write_bytes(
        refit_plan(file.read_bytes(), file.name, graph, changed, load_module(installed))
    )
    with open_file(spec, refitted, tiny_bundle) as opened:
        assert failures(opened, tiny_bundle, cases) == []
