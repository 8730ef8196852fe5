"""Decoding through a TensorRT plan, on stand-ins for CUDA and TensorRT."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from decoding import decode
from fake_cuda import FakeCuda, FakeTensorRT
from tiny import MAX_DEPTH

from export.trt_builder import write_plan_graph
from export.trt_options import TrtOptions, make_profiles
from runtime import Engine, EngineError
from runtime.cases import load_cases
from runtime.decoder import Decoder
from runtime.engines import EngineSpec
from runtime.parity import AMBIGUOUS, PASS, judge
from runtime.replay import replay
from runtime.trt import TrtSession, run_once

MAX_SEQ = 200


@pytest.fixture(scope="module")
def trt() -> FakeTensorRT:
    return FakeTensorRT()


@pytest.fixture(scope="module")
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture(scope="module")
def plan(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The stand-in's plan: the graph that TensorRT would be given."""
    graph = ir.load(tiny_bundle / "model.onnx")
    return str(write_plan_graph(graph, tmp_path_factory.mktemp("plan"))).encode()


def make_spec(engine: Engine) -> EngineSpec:
    inputs = engine.manifest.graphs.onnx.inputs
    profiles = make_profiles(inputs, TrtOptions(max_batch=3), MAX_SEQ, MAX_DEPTH, 3)
    names = ("p.plan", "tensorrt", "10.0", "13", ("8.9",), "fp32", False, "")
    return EngineSpec(*names, profiles, depth_shape=(1,))


@pytest.fixture(scope="module")
def session(engine: Engine, plan: bytes, trt: FakeTensorRT, cuda: FakeCuda) -> TrtSession:
    return TrtSession(make_spec(engine), engine.manifest.graphs.onnx, plan, trt, cuda)


def test_decoding_equals_the_cpu(session: TrtSession, engine: Engine) -> None:
    rows, depths = [[5, 6, 7] * 9, [8, 9]], [4, 2]
    found = decode(Decoder(session, engine.manifest, depths), rows, 80)
    np.testing.assert_allclose(
        found, decode(engine.new_decoder(depths), rows, 80), rtol=1e-4, atol=1e-4
    )


def test_plan_with_a_scalar_depth_still_runs(
    engine: Engine, tiny_bundle: Path, cuda: FakeCuda
) -> None:
    # As plans were before theirs was a vector.
    spec = dataclasses.replace(make_spec(engine), depth_shape=())
    older = str(tiny_bundle / "model.onnx").encode()
    session = TrtSession(spec, engine.manifest.graphs.onnx, older, FakeTensorRT(), cuda)
    found = decode(Decoder(session, engine.manifest, [3]), [[5, 6, 7]], 2)
    expected = decode(engine.new_decoder([3]), [[5, 6, 7]], 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_two_decoders_take_turns_on_one_context(session: TrtSession, engine: Engine) -> None:
    rows = [[5, 6, 7], [9, 8, 7, 6]]
    decoders = [Decoder(session, engine.manifest, [2]) for _ in rows]
    alone = [engine.new_decoder([2]) for _ in rows]
    for one, other, row in zip(decoders, alone, rows, strict=True):
        one.prefill([row])
        other.prefill([row])
    for step in range(6):
        for index in (0, 1):
            token = 5 + 7 * step + index
            found, expected = (them[index].step([token]) for them in (decoders, alone))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_steps_set_addresses_once(session: TrtSession, engine: Engine, trt: FakeTensorRT) -> None:
    decoder = Decoder(session, engine.manifest, [3])
    decode(decoder, [[5, 6, 7]], 3)
    before = sum(context.sets for context in trt.contexts)
    for _ in range(20):
        decoder.step([5])
    assert sum(context.sets for context in trt.contexts) == before


def test_the_cache_fills_the_plan_to_its_last_slot(session: TrtSession, engine: Engine) -> None:
    # 200 tokens take 256 slots, though the model has 512 positions.
    assert session.max_slots == 256
    decoder = Decoder(session, engine.manifest, [1])
    decoder.prefill([[5] * MAX_SEQ])
    for _ in range(56):
        decoder.step([5])
    with pytest.raises(EngineError, match=r"the plan's profile prefill takes .*--max-seq"):
        decoder.step([5])


def test_batch_beyond_the_plan_is_refused(session: TrtSession, engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"profile prefill takes .*--max-batch"):
        Decoder(session, engine.manifest, [1] * 4).prefill([[5]] * 4)


def test_recorded_cases_pass(session: TrtSession, engine: Engine, tiny_bundle: Path) -> None:
    cases = load_cases(tiny_bundle / "cases.safetensors")
    rows, _ = judge(replay(session, engine.manifest, cases), engine.manifest.parity.relative_l2)
    assert {row.verdict for row in rows} <= {PASS, AMBIGUOUS}


def test_scalar_recorded_as_a_list_of_one_is_taken(session: TrtSession, tiny_bundle: Path) -> None:
    case = load_cases(tiny_bundle / "cases.safetensors")[0]
    inputs = {**case.inputs, "depth": np.array([case.depth])}
    np.testing.assert_allclose(
        run_once(session, inputs)["logits"], case.outputs["logits"], rtol=1e-3, atol=1e-4
    )


def test_plan_that_tensorrt_refuses_is_one_line(engine: Engine, cuda: FakeCuda) -> None:
    with pytest.raises(EngineError, match=r"p\.plan: TensorRT cannot load it: it gave no reason"):
        TrtSession(make_spec(engine), engine.manifest.graphs.onnx, b"", FakeTensorRT(), cuda)


def test_failure_names_the_plan(
    engine: Engine, plan: bytes, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRT()
    with TrtSession(make_spec(engine), engine.manifest.graphs.onnx, plan, trt, cuda) as session:
        decoder = Decoder(session, engine.manifest, [1])
        decoder.prefill([[5]])
        for context in trt.contexts:
            monkeypatch.setattr(context, "execute_async_v3", lambda stream: False)
        with pytest.raises(EngineError, match=r"p\.plan: TensorRT failed"):
            decoder.step([5])
