"""Decoding through a TensorRT plan, on stand-ins for CUDA and TensorRT."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from export.options import TrtOptions
from export.tensorrt.options import check_options, make_profiles
from export.tensorrt.plan_files import write_plan_graph
from runtime import Engine, EngineError
from runtime.backends.trt import TrtBackend
from runtime.bundle.plans import PlanSpec
from runtime.decode.decoder import Decoder
from runtime.measure.loss import score_windows
from runtime.parity.cases import load_cases, recorded_results
from runtime.parity.replay import run
from runtime.parity.verdict import AMBIGUOUS, PASS, Bounds, compare
from tests.support.decoding import decode
from tests.support.fake_cuda import FakeCuda, FakeTensorRT
from tests.support.tiny import MAX_DEPTH

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


def make_spec(
    engine: Engine, max_batch: int = 3, max_seq: int = MAX_SEQ, whole_prompt: bool = False
) -> PlanSpec:
    inputs, options = engine.manifest.graphs.onnx.inputs, TrtOptions(max_batch=max_batch)
    profiles = make_profiles(inputs, options, max_seq, MAX_DEPTH, 3, whole_prompt)
    names = ("p.plan", "tensorrt", "10.0", "13", ("8.9",), "fp32", False, "")
    return PlanSpec(*names, profiles, max_new_tokens=512, max_logits=128)


@pytest.fixture(scope="module")
def session(engine: Engine, plan: bytes, trt: FakeTensorRT, cuda: FakeCuda) -> TrtBackend:
    return TrtBackend(make_spec(engine), engine.manifest.graphs.onnx, plan, trt, cuda)


@pytest.fixture
def planned(
    session: TrtBackend, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """An engine on the plan."""
    monkeypatch.setattr("runtime.engine.open_backend", lambda *_: session)
    with Engine.open(tiny_bundle) as opened:
        yield opened


def test_decoding_equals_the_cpu(session: TrtBackend, engine: Engine) -> None:
    rows, depths = [[5, 6, 7] * 9, [8, 9]], [4, 2]
    found = decode(Decoder(session, engine.manifest, depths), rows, 80)
    np.testing.assert_allclose(
        found, decode(engine.new_decoder(depths), rows, 80), rtol=1e-4, atol=1e-4
    )


def test_rows_come_and_go_as_on_the_cpu(session: TrtBackend, engine: Engine) -> None:
    found = []
    for decoder in (Decoder(session, engine.manifest, [4, 2]), engine.new_decoder([4, 2])):
        decoder.prefill([[5, 6, 7] * 9, [8, 9]])
        part = decoder.beside([5])
        part.prefill([[4] * 70])
        decoder.admit(2, part)
        decoder.step([5, 6, 7])
        decoder.evict(0)
        found.append([decoder.step([token, token + 1]).copy() for token in range(5, 60)])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_two_decoders_take_turns_on_one_context(session: TrtBackend, engine: Engine) -> None:
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


def test_steps_set_addresses_once(session: TrtBackend, engine: Engine, trt: FakeTensorRT) -> None:
    decoder = Decoder(session, engine.manifest, [3])
    decode(decoder, [[5, 6, 7]], 3)
    before = sum(context.sets for context in trt.contexts)
    for _ in range(20):
        decoder.step([5])
    assert sum(context.sets for context in trt.contexts) == before


def test_the_cache_fills_the_plan_to_its_last_slot(session: TrtBackend, engine: Engine) -> None:
    # 200 tokens take 256 slots, though the model has 512 positions.
    assert session.max_slots == 256
    decoder = Decoder(session, engine.manifest, [1])
    decoder.prefill([[5] * MAX_SEQ])
    for _ in range(56):
        decoder.step([5])
    with pytest.raises(EngineError, match=r"the plan's profile prefill takes .*--max-seq"):
        decoder.step([5])


def test_batch_beyond_the_plan_is_refused(session: TrtBackend, engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"profile prefill takes .*--max-batch"):
        Decoder(session, engine.manifest, [1] * 4).prefill([[5]] * 4)


@pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")
def test_text_that_the_plan_cannot_hold_is_refused_before_it_runs(
    planned: Engine, trt: FakeTensorRT
) -> None:
    before = sum(context.runs for context in trt.contexts)
    words = (
        r"200 tokens and max_new_tokens=57 pass the 256 that this bundle's plan holds \(the model "
    )
    words += r"has 512 positions\); .* up to 56, or export again with a larger --max-seq"
    with pytest.raises(EngineError, match=words):
        planned.generate([5] * 200, max_new_tokens=57)
    with pytest.raises(EngineError, match=words):
        planned.stream([5] * 200, max_new_tokens=57)
    for ask in (planned.generate, planned.logits):
        with pytest.raises(EngineError, match="a prompt of 257 tokens is longer than the 256 that"):
            ask([5] * 257)
    assert sum(context.runs for context in trt.contexts) == before
    found = planned.generate([5] * 200, depth=1, max_new_tokens=56)
    assert found.finish_reason in ("length", "eos")


@pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")
def test_batch_that_the_plan_cannot_hold_is_refused_before_it_runs(
    planned: Engine, trt: FakeTensorRT
) -> None:
    before = sum(context.runs for context in trt.contexts)
    for ask in (planned.generate, planned.logits):
        with pytest.raises(
            EngineError, match=r"4 sequences at once, .* takes up to 3; .* --max-batch 4"
        ):
            ask([[5]] * 4)
    assert sum(context.runs for context in trt.contexts) == before


def test_windows_are_scored_as_many_at_once_as_the_plan_takes(
    planned: Engine, engine: Engine
) -> None:
    windows = np.random.default_rng(0).integers(3, 200, (4, 20))
    found = score_windows(planned, windows, depth=2, batch=4)
    assert found == pytest.approx(score_windows(engine, windows, depth=2), rel=1e-5)


def test_text_that_comes_whole_is_scored_in_one_call(
    engine: Engine, plan: bytes, cuda: FakeCuda
) -> None:
    manifest = engine.manifest
    model = dataclasses.replace(manifest.model, pooling="mean")
    spec = make_spec(engine, whole_prompt=True)
    with TrtBackend(spec, manifest.graphs.onnx, plan, FakeTensorRT(), cuda) as session:
        decoder = Decoder(session, dataclasses.replace(manifest, model=model), [1])
        ((start, logits),) = decoder.score([[5] * MAX_SEQ])
    assert (start, logits.shape[1]) == (0, MAX_SEQ)


@pytest.mark.parametrize(("max_batch", "max_seq"), [(3, MAX_SEQ), (2, MAX_SEQ), (1, 28)])
def test_recorded_cases_pass(
    engine: Engine, plan: bytes, cuda: FakeCuda, tiny_bundle: Path, max_batch: int, max_seq: int
) -> None:
    # Recorded batches have 3 rows: a plan of fewer gets them in groups.
    manifest, spec = engine.manifest, make_spec(engine, max_batch, max_seq)
    cases = load_cases(tiny_bundle / "cases.safetensors")
    with TrtBackend(spec, manifest.graphs.onnx, plan, FakeTensorRT(), cuda) as session:
        results = run(cases, session, manifest)
    rows = compare(results, recorded_results(cases), Bounds(manifest.parity.relative_l2)).rows
    assert [row.reason for row in rows if row.verdict not in (PASS, AMBIGUOUS)] == []
    assert {"padded", "mixed"} <= {row.measurement.kind for row in rows}


def test_recorded_cases_fit_the_least_max_seq(tiny_bundle: Path) -> None:
    cases = load_cases(tiny_bundle / "cases.safetensors")
    longest = max(
        case.inputs["attention_mask"].shape[1] for case in cases if "attention_mask" in case.inputs
    )
    texts = [case for case in cases if case.kind == "greedy"]
    greedy = max(case.inputs["prompt"].size + case.outputs["tokens"].size for case in texts)
    assert check_options(TrtOptions(max_seq=max(longest, greedy)), 512) == 28


def test_plan_that_tensorrt_refuses_is_one_line(engine: Engine, cuda: FakeCuda) -> None:
    with pytest.raises(EngineError, match=r"p\.plan: TensorRT cannot load it: it gave no reason"):
        TrtBackend(make_spec(engine), engine.manifest.graphs.onnx, b"", FakeTensorRT(), cuda)


def test_failure_names_the_plan(
    engine: Engine, plan: bytes, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRT()
    with TrtBackend(make_spec(engine), engine.manifest.graphs.onnx, plan, trt, cuda) as session:
        decoder = Decoder(session, engine.manifest, [1])
        decoder.prefill([[5]])
        for context in trt.contexts:
            monkeypatch.setattr(context, "execute_async_v3", lambda stream: False)
        with pytest.raises(EngineError, match=r"p\.plan: TensorRT failed"):
            decoder.step([5])
