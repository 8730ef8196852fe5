"""Decoding through a TensorRT plan, on stand-ins for CUDA and TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeCuda, FakeTensorRT
from tiny import MAX_DEPTH

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


def make_spec(engine: Engine) -> EngineSpec:
    inputs = engine.manifest.graphs.onnx.inputs
    profiles = make_profiles(inputs, TrtOptions(max_batch=3), MAX_SEQ, MAX_DEPTH, 3)
    names = ("p.plan", "tensorrt", "10.0", "13", ("8.9",), "fp32", False, "")
    return EngineSpec(*names, profiles)


@pytest.fixture(scope="module")
def session(engine: Engine, tiny_bundle: Path, trt: FakeTensorRT, cuda: FakeCuda) -> TrtSession:
    plan = str(tiny_bundle / "model.onnx").encode()
    return TrtSession(make_spec(engine), engine.manifest.graphs.onnx, plan, trt, cuda)


def decode(decoder: Decoder, rows: list[list[int]], tokens: int) -> np.ndarray:
    """Logits of a prompt and of random tokens after it, [tokens + 1, batch, V]."""
    generator = np.random.default_rng(0)
    found = [decoder.prefill(rows).copy()]
    for _ in range(tokens):
        found.append(decoder.step(generator.integers(3, 200, len(rows))).copy())
    return np.stack(found)


def test_decoding_equals_the_cpu(session: TrtSession, engine: Engine) -> None:
    rows, depths = [[5, 6, 7] * 9, [8, 9]], [4, 2]
    found = decode(Decoder(session, engine.manifest, depths), rows, 80)
    np.testing.assert_allclose(
        found, decode(engine.new_decoder(depths), rows, 80), rtol=1e-4, atol=1e-4
    )


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
    engine: Engine, tiny_bundle: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRT()
    plan = str(tiny_bundle / "model.onnx").encode()
    with TrtSession(make_spec(engine), engine.manifest.graphs.onnx, plan, trt, cuda) as session:
        decoder = Decoder(session, engine.manifest, [1])
        decoder.prefill([[5]])
        for context in trt.contexts:
            monkeypatch.setattr(context, "execute_async_v3", lambda stream: False)
        with pytest.raises(EngineError, match=r"p\.plan: TensorRT failed"):
            decoder.step([5])
