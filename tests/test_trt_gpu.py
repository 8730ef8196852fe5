"""What only a GPU can show: a plan built here, against PyTorch's recorded outputs. `-m gpu`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import MAX_DEPTH

from export.trt_builder import GraphFacts, build_plans
from export.trt_options import TrtOptions
from runtime.bundle import read_manifest
from runtime.cases import load_cases
from runtime.engines import EngineSpec, describe_machine
from runtime.trt import TrtSession, open_plan, run_once
from runtime.trt_flavours import find_flavour, load_module
from runtime.trt_refit import refit_plan

pytestmark = pytest.mark.gpu
FACTS = GraphFacts(max_depth=MAX_DEPTH, default_depth=3, max_positions=512, precision="fp32")


def build(bundle: Path, folder: Path, refit: bool = False) -> tuple[EngineSpec, Path, str]:
    """A plan for this machine's GPU, with whichever TensorRT is installed; its file and hash."""
    options = TrtOptions(max_seq=128, refit=refit)
    (spec,) = build_plans(bundle / "model.onnx", folder / "engines", options, FACTS)
    file = folder / spec.file
    return spec, file, hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def session(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrtSession]:
    spec, file, digest = build(tiny_bundle, tmp_path_factory.mktemp("plans"))
    graph = read_manifest(tiny_bundle).graphs.onnx
    with open_plan(file, spec, graph, digest, describe_machine()) as opened:
        yield opened


def test_plan_gives_pytorch_logits_at_every_depth(session: TrtSession, tiny_bundle: Path) -> None:
    bound = read_manifest(tiny_bundle).parity.relative_l2
    depths = set()
    for case in load_cases(tiny_bundle / "cases.safetensors"):
        if case.kind not in ("prefill", "padded") or case.after is not None:
            continue
        found, wanted = run_once(session, case.inputs)["logits"], case.outputs["logits"]
        valid = case.valid.get("logits", np.array(True))
        chosen = np.broadcast_to(valid, wanted.shape).astype(bool)
        error = np.linalg.norm((found - wanted)[chosen]) / np.linalg.norm(wanted[chosen])
        assert error <= bound, f"{case.name}: relative L2 {error:.1e}"
        depths.add(case.depth)
    assert depths == set(range(1, MAX_DEPTH + 1))


def test_plan_takes_depth_as_a_vector_on_the_host(session: TrtSession) -> None:
    # Source: what Triton's TensorRT backend compares, CompareShapeDimsSupported.
    engine = session._engine
    assert tuple(engine.get_tensor_shape("depth")) == (1,) == session.spec.depth_shape
    shape_inputs = {
        one.name for one in session.graph.inputs if engine.is_shape_inference_io(one.name)
    }
    assert shape_inputs == {"depth"}


def test_refitted_plan_computes_with_the_new_weights(
    tiny_bundle: Path, tmp_path: Path, session: TrtSession
) -> None:
    # A plan built from a graph with one weight changed, refitted from the right graph.
    import onnx
    from onnx import numpy_helper

    changed = tmp_path / "changed"
    changed.mkdir()
    model = onnx.load(tiny_bundle / "model.onnx")
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    heads = next(
        one for one in loop.attribute[0].g.initializer if one.name == "step.modulate.heads"
    )
    heads.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(heads) * 3, heads.name))
    onnx.save(model, changed / "model.onnx")
    spec, file, _ = build(changed, tmp_path, refit=True)
    installed = next(f for f in describe_machine().installed if f.flavour.name == spec.flavour)
    assert find_flavour(installed.flavour) == installed
    refitted = refit_plan(
        file.read_bytes(), spec, tiny_bundle / "model.onnx", load_module(installed)
    )
    other = tmp_path / "refitted.plan"
    other.write_bytes(refitted)
    graph, digest = read_manifest(tiny_bundle).graphs.onnx, hashlib.sha256(refitted).hexdigest()
    case = next(c for c in load_cases(tiny_bundle / "cases.safetensors") if c.kind == "prefill")
    with open_plan(other, spec, graph, digest, describe_machine()) as opened:
        found = run_once(opened, case.inputs)["logits"]
    np.testing.assert_allclose(found, run_once(session, case.inputs)["logits"], rtol=1e-5)
