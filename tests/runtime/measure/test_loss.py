from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from runtime import Engine, EngineError
from runtime.measure.loss import ScoredBundle, score_windows
from runtime.measure.options import BenchOptions
from runtime.measure.speed import (
    bench_engine,
    describe_machine,
    fitting_contexts,
    measure_read_rate,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")


@pytest.fixture
def windows(engine: Engine) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(3, engine.manifest.model.vocab_size, (5, 150))


@pytest.mark.parametrize("prefix", [0, 1, 40, 140, 148])
def test_score_windows_equals_the_definition(
    engine: Engine, windows: np.ndarray, prefix: int
) -> None:
    expected = []
    for row in windows:
        logits = engine.logits(row, 2)[:-1].astype(np.float64)
        loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(row) - 1), row[1:]]
        expected.append(loss[prefix:])
    done: list[int] = []
    found = score_windows(engine, windows, 2, prefix, batch=2, advance=done.append)
    assert found == pytest.approx(np.mean(expected), rel=1e-5)
    assert done == [2, 2, 1]


def test_bundle_is_scored_like_any_model(engine: Engine, windows: np.ndarray) -> None:
    scored, manifest = ScoredBundle(engine), engine.manifest
    assert (scored.name, scored.max_depth) == ("trained", manifest.depth.max)
    assert scored.config.pooling == manifest.model.pooling
    done: list[int] = []
    found = scored.score(windows, 2, prefix=3, advance=done.append)
    assert found == score_windows(engine, windows, 2, 3)
    assert sum(done) == len(windows)
    texts = ["a sea", "b"]
    ids = scored.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    assert ids == [engine.codec.encode(text, False) for text in texts]
    with pytest.raises(EngineError, match="outside this bundle's range"):
        scored.check_depth(manifest.depth.max + 1)


def test_score_windows_refuses(engine: Engine, windows: np.ndarray) -> None:
    most = engine.manifest.model.max_position_embeddings
    for bad, words in (
        (windows[0], "shape"),
        (windows[:0], "shape"),
        (windows[:, :1], "shape"),
        (windows + 10**6, "vocabulary"),
        (np.zeros((1, most + 1), np.int64), "positions"),
    ):
        with pytest.raises(EngineError, match=words):
            score_windows(engine, bad, 1)
    for prefix in (-1, 149):
        with pytest.raises(EngineError, match="prefix"):
            score_windows(engine, windows, 1, prefix)


def test_bench_reports_every_pair(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.measure.speed.measure_read_rate", lambda threads: 1e10)
    lines: list[str] = []
    asked = BenchOptions((1, 2), (8, 16), tokens=6, repeats=2)
    report = bench_engine(engine, asked, threads=1, report=lines.append)
    assert [(row.depth, row.context) for row in report.rows] == [(1, 8), (1, 16), (2, 8), (2, 16)]
    assert len(lines) == 8
    model = engine.manifest.model
    for row in report.rows:
        assert row.tokens_per_s == pytest.approx(1000 / row.decode_ms)
        assert 0 < row.engine_overhead < 1
        assert row.weight_bytes == model.step_bytes * row.depth + model.once_bytes
    assert report.to_json()["machine"]["cores"] >= 1
    with pytest.raises(EngineError, match="depth=0"):
        bench_engine(engine, BenchOptions((0,), (8,)))


@pytest.mark.parametrize(
    ("positions", "tokens", "contexts"),
    [
        (2048, 32, (64, 1024)), (1056, 32, (64, 1024)), (1055, 32, (64,)), (96, 32, (64,)),
        (95, 32, (63,)), (32, 32, (1,)), (8, 32, (1,)),
    ],
)  # fmt: skip
def test_contexts_that_are_not_asked_for_are_those_that_fit(
    engine: Engine, positions: int, tokens: int, contexts: tuple[int, ...]
) -> None:
    model = dataclasses.replace(engine.manifest.model, max_position_embeddings=positions)
    manifest = dataclasses.replace(engine.manifest, model=model)
    assert fitting_contexts(manifest, tokens) == contexts


def test_machine_is_described() -> None:
    assert 1e8 < measure_read_rate(1, 64, 1) < 1e13
    versions = describe_machine(["safetensors", "no-such-package"])["versions"]
    assert versions["onnxruntime"] != "not installed"
    assert versions["safetensors"] != versions["no-such-package"] == "not installed"
