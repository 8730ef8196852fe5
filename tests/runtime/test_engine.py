from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Engine, EngineError, Options
from runtime.decode.kv_cache import capacity_for
from runtime.errors import BundleError

pytestmark = pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Float32 sums in another order: the parity bound, relative L2 1e-5."""
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def prompts(engine: Engine, *lengths: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    size = engine.manifest.model.vocab_size
    return [generator.integers(3, size, length).tolist() for length in lengths]


def test_runtime_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, runtime\n"
        "from runtime import Engine, Session, open_bundle\n"
        "import runtime.parity.verdict, runtime.measure.loss, runtime.measure.speed\n"
        "import runtime.parity.picture\n"
        "bad = {'torch', 'transformers', 'onnx', 'ouroboros'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_runtime_has_no_other_names() -> None:
    import runtime

    with pytest.raises(AttributeError, match="Enginee"):
        runtime.Enginee  # noqa: B018


def test_decoding_equals_the_whole_sequence(engine: Engine) -> None:
    for depth in (1, engine.manifest.depth.max):
        (prompt,) = prompts(engine, 7, seed=depth)
        tokens = engine.generate(prompt, depth=depth, max_new_tokens=80).tokens
        logits = engine.logits(prompt + tokens, depth)
        assert logits.shape == (len(prompt + tokens), engine.manifest.model.vocab_size)
        assert logits.dtype == np.float32
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == tokens


def test_steps_give_the_logits_of_the_whole_sequence(engine: Engine) -> None:
    (ids,) = prompts(engine, 150)
    whole = engine.logits(ids, 2)
    decoder = engine.new_decoder([2])
    assert_close(decoder.prefill([ids[:60]])[0], whole[59])
    for index in range(60, 150):  # the cache grows on the way
        assert_close(decoder.step([ids[index]])[0], whole[index])


def test_chunked_prefill_equals_one_call(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = prompts(engine, 100, 37)
    whole = engine.new_decoder([2, 3]).prefill(rows)
    monkeypatch.setattr("runtime.decode.decoder.PREFILL_CHUNK", 16)
    monkeypatch.setattr("runtime.decode.decoder.SCORE_CHUNK", 16)
    assert_close(engine.new_decoder([2, 3]).prefill(rows), whole)
    for row, depth, last in zip(rows, (2, 3), whole, strict=True):
        assert_close(engine.logits(row, depth)[-1], last)


def test_logits_of_a_row_shorter_than_what_is_left_of_another(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = prompts(engine, 60, 23, 1)  # for the short ones a chunk is padding alone
    alone = [engine.logits(row, 2) for row in rows]
    for chunk in (7, 16, 64):
        monkeypatch.setattr("runtime.decode.decoder.SCORE_CHUNK", chunk)
        for found, expected in zip(engine.logits(rows, 2), alone, strict=True):
            assert_close(found, expected)


def test_messages_without_chat_are_told_what_is_missing(engine: Engine) -> None:
    with pytest.raises(EngineError, match="a list of messages is a chat; give chat=True with it"):
        engine.generate([{"role": "user", "content": "Hi"}], max_new_tokens=1)


def test_batch_rows_equal_rows_alone_at_their_own_depth(engine: Engine) -> None:
    rows = prompts(engine, 3, 40, 1, 17)
    depths = [1, 4, 2, 3]
    together = engine.generate(rows, depth=depths, max_new_tokens=30)
    for row, depth, found in zip(rows, depths, together, strict=True):
        alone = engine.generate(row, depth=depth, max_new_tokens=30)
        assert found == alone
        assert found.prompt_tokens == len(row)
    logits = engine.logits(rows, depths)
    for row, depth, found in zip(rows, depths, logits, strict=True):
        assert_close(found, engine.logits(row, depth))


def test_sampled_row_in_a_batch_equals_itself_alone(engine: Engine) -> None:
    rows = prompts(engine, 5, 9)
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "depth": 2}
    together = engine.generate(rows, seed=3, **options)
    assert together[1] == engine.generate(rows[1], seed=3, **options)
    listed = engine.generate(rows, seed=[3, 4], **options)
    assert listed[0] == together[0]
    assert listed[1] == engine.generate(rows[1], seed=4, **options)


def test_depth_changes_the_answer_and_none_is_the_default(engine: Engine) -> None:
    (ids,) = prompts(engine, 12)
    default = engine.manifest.depth.default
    np.testing.assert_array_equal(engine.logits(ids), engine.logits(ids, default))
    assert np.abs(engine.logits(ids, 1) - engine.logits(ids, 4)).max() > 1e-3


def test_text_prompt_array_and_batch_of_texts(engine: Engine) -> None:
    ids = engine.tokenize("Hello")
    one = engine.generate("Hello", max_new_tokens=5)
    assert one == engine.generate(ids, max_new_tokens=5)
    assert one == engine.generate(np.array(ids), max_new_tokens=5)
    assert [one] == engine.generate(np.array([ids]), max_new_tokens=5)
    assert one == engine.generate(["Hello", "Hello there"], max_new_tokens=5)[0]
    assert engine.detokenize(ids) == "Hello"


def test_stream_joined_is_the_generated_text(engine: Engine) -> None:
    for seed in range(5):
        (ids,) = prompts(engine, 6, seed=seed)
        options: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_new_tokens": 50}
        whole = engine.generate(ids, **options)
        pieces = list(engine.stream(ids, **options))
        assert "".join(str(piece) for piece in pieces) == whole.text
        assert [piece.token for piece in pieces] == whole.tokens
        assert [p.finish_reason for p in pieces if p.finish_reason] == [whole.finish_reason]
        assert whole.finish_reason in ("length", "eos")


def test_stop_string_ends_generation_and_is_not_shown(engine: Engine) -> None:
    (ids,) = prompts(engine, 6)
    whole = engine.generate(ids, temperature=1.0, seed=1, max_new_tokens=40)
    stop = whole.text[5:8]
    cut = engine.generate(ids, temperature=1.0, seed=1, max_new_tokens=40, stop=["\0never", stop])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert len(cut.tokens) < 40
    assert cut.tokens == whole.tokens[: len(cut.tokens)]


def test_cancellation_between_tokens(engine: Engine) -> None:
    event = threading.Event()
    seen = []
    for piece in engine.stream([5, 6], max_new_tokens=50, cancel=event):
        seen.append(piece)
        if len(seen) == 3:
            event.set()
    assert seen[-1].finish_reason == "cancelled"
    assert seen[-1].token is None
    assert sum(piece.token is not None for piece in seen) == 3
    assert engine.generate([5, 6], cancel=lambda: True).tokens == []
    with pytest.raises(EngineError, match="cancel"):
        engine.generate([5, 6], cancel=1)  # type: ignore[arg-type]


def test_engine_serves_several_threads(engine: Engine) -> None:
    rows = prompts(engine, 4, 30, 9, 70, 2, 18)
    expected = [engine.generate(row, depth=1 + i % 4) for i, row in enumerate(rows)]
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda i: engine.generate(rows[i], depth=1 + i % 4), range(6))
        assert list(found) == expected


def test_untrained_depth_warns_once(tiny_bundle: Path) -> None:
    with Engine.open(tiny_bundle) as fresh, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained = fresh.manifest.depth.trained
        depth = next((d for d in range(fresh.manifest.depth.max, 0, -1) if d not in trained), None)
        if depth is None:
            pytest.skip("every depth was trained")
        fresh.generate([5], depth=depth, max_new_tokens=1)
        fresh.generate([5], depth=depth, max_new_tokens=1)
        assert len([w for w in caught if "never trained" in str(w.message)]) == 1
        assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 0}, r"depth=0 is outside this bundle's range 1\.\.\d+; give one in it$"),
        ({"depth": -1}, "depth=-1 is outside"),
        ({"depth": 6400}, r"depth=6400 is outside this bundle's range 1\.\.\d+; re-export with"),
        ({"depth": "8"}, "not a whole number"),
        ({"depth": 1.0}, "not a whole number"),
        ({"depth": [1, 2]}, "2 depths were given for 1 prompts"),
        ({"prompt": []}, "empty prompt"),
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": [[1], []]}, "empty prompt"),
        ({"prompt": [10**9]}, "token id 1000000000 is outside the vocabulary"),
        ({"prompt": [-1]}, "token id -1"),
        ({"prompt": [1, "a"]}, "mixes"),
        ({"prompt": [1.5]}, "not allowed|not a token id"),
        ({"prompt": np.array([1.5])}, "not a token id"),
        ({"prompt": np.zeros((1, 1, 1), np.int64)}, "3 dimensions"),
        ({"prompt": None}, "NoneType is not allowed"),
        ({"prompt": b"x"}, "bytes is not allowed"),
        ({"prompt": {"a": 1}}, "dict is not allowed"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 10**9}, "pass the model's"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_p": 2}, "top_p=2"),
        ({"top_k": -2}, "top_k=-2"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": [1, 2]}, "2 seeds"),
        ({"stop": ""}, "stop=''"),
        ({"stop": [3]}, "stop=3"),
        ({"stop": 5}, "stop=5"),
        ({"prompt": np.zeros((0, 3), np.int64)}, "empty prompt"),
        ({"prompt": np.zeros((3, 0), np.int64)}, "empty prompt"),
        ({"prompt": np.array(3)}, "0 dimensions"),
        ({"prompt": "a\ud800"}, r"'\\ud800' at character 1"),
        ({"prompt": ["a", "\udcff"]}, r"'\\udcff' at character 0"),
        ({"prompt": "\udcff", "chat": True}, r"no Unicode character; give text that is UTF-8"),
        ({"depth": np.array(0)}, "depth=0 is outside"),
        ({"depth": np.array(1.5)}, "not a whole number"),
        ({"depth": np.ones((1, 1), np.int64)}, "not a whole number"),
        ({"seed": np.array([1, 2])}, "2 seeds"),
    ],
)
def test_bad_request_is_one_clear_line(engine: Engine, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        engine.generate(**{"prompt": [1, 2], **options})
    assert "\n" not in str(caught.value)
    if not {"prompt", "depth", "seed"} & options.keys():
        with pytest.raises(EngineError, match=words):
            engine.stream([1, 2], **options)


def test_numpy_scalars_are_numbers(engine: Engine) -> None:
    plain = engine.generate([5], depth=2, seed=3, temperature=1.0, max_new_tokens=3)
    options: dict[str, Any] = {"depth": np.array(2), "seed": np.array(3)}
    options |= {"temperature": np.float32(1.0), "max_new_tokens": np.int64(3)}
    assert engine.generate(np.array([5]), **options) == plain


@pytest.mark.parametrize("ids", [[-1], [10**30], [259], ["a"], "abc", 5, None, [1.5], [True]])
def test_detokenize_refuses_what_is_no_id(engine: Engine, ids: Any) -> None:
    with pytest.raises(EngineError, match="token id"):
        engine.detokenize(ids)


def test_tokenize_and_detokenize_edges(engine: Engine) -> None:
    assert engine.detokenize([]) == ""
    assert engine.detokenize(np.array(engine.tokenize("naïve 😀"))) == "naïve 😀"
    with pytest.raises(EngineError, match="no Unicode character"):
        engine.tokenize("\udcff")


def test_prompt_longer_than_the_positions_is_refused(engine: Engine) -> None:
    most = engine.manifest.model.max_position_embeddings
    with pytest.raises(EngineError, match=f"longer than the model's {most} positions"):
        engine.generate([5] * (most + 1))
    with pytest.raises(EngineError, match=f"longer than the model's {most} positions"):
        engine.logits([5] * (most + 1))
    with pytest.raises(EngineError, match="max_new_tokens up to 3"):
        engine.generate([5] * (most - 3), max_new_tokens=4)
    with pytest.raises(EngineError, match=r"pass the model's \d+ positions; shorten the prompt$"):
        engine.generate([5] * most, max_new_tokens=1)


def test_full_length_sequence_fits(engine: Engine) -> None:
    most = engine.manifest.model.max_position_embeddings
    reason = engine.generate([5] * (most - 3), max_new_tokens=3, depth=1).finish_reason
    assert reason in ("length", "eos")


def test_open_refuses_backend_threads_and_use_after_close(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="backend='gpu' is not known; allowed: auto, cpu, cuda"):
        Engine.open(tiny_bundle, backend="gpu")
    with pytest.raises(EngineError, match="threads=0"):
        Engine.open(tiny_bundle, threads=0)
    with pytest.raises(BundleError, match="no bundle at"):
        Engine.open(tiny_bundle / "nowhere")
    with Engine.open(tiny_bundle, threads=1) as closed:
        pass
    with pytest.raises(EngineError, match="closed"):
        closed.generate([5])


def test_capacity_grows_by_buckets_up_to_the_positions() -> None:
    assert [capacity_for(n, 8192) for n in (0, 1, 64, 65, 512, 513)] == [0, 64, 64, 128, 512, 576]
    sizes = sorted({capacity_for(n, 8192) for n in range(8193)})
    assert all(size % 64 == 0 for size in sizes)
    assert all(b - a <= max(64, a // 8) for a, b in itertools.pairwise(sizes) if a)
    assert sizes[-1] == 8192
    assert len(sizes) < 40
    assert capacity_for(100, 100) == 128
    assert all(n <= capacity_for(n, 1000) <= 1024 for n in range(1001))


def test_steps_reuse_their_buffers(engine: Engine) -> None:
    decoder = engine.new_decoder([2, 1])
    decoder.prefill([[5, 6, 7], [8]])
    decoder.step([5, 5])
    step, buffers = decoder._step, decoder.cache.named()
    for _ in range(60):
        decoder.step([5, 5])
    assert decoder._step is step
    assert decoder.cache.capacity == 64
    for name, array in decoder.cache.named().items():
        assert array.ctypes.data == buffers[name].ctypes.data
    decoder.step([5, 5])
    assert decoder.cache.capacity == 128
    assert decoder._step is not step


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_is_flat_over_many_tokens(engine: Engine) -> None:
    def sequence(tokens: int) -> None:
        decoder = engine.new_decoder([2])
        decoder.prefill([[5, 6, 7]])
        for _ in range(tokens):
            decoder.step([5])

    length = min(500, engine.manifest.model.max_position_embeddings - 3)
    for _ in range(4):
        sequence(length)
    before = resident_bytes()
    for _ in range(2000 // length):
        sequence(length)
    assert resident_bytes() - before < 4 * 2**20


SAMPLED: dict[str, Any] = {
    "temperature": 60.0,  # the tiny model is sure of itself
    "top_k": 40,
    "min_p": 0.001,
    "repetition_penalty": 1.2,
    "max_new_tokens": 12,
    "logprobs": 3,
}


def test_options_mean_the_same_however_they_are_given(engine: Engine) -> None:
    (prompt,) = prompts(engine, 9)
    wanted = engine.generate(prompt, 2, seed=5, **SAMPLED)
    assert len(wanted.logprobs) == len(wanted.tokens)
    options = Options(seed=5, **SAMPLED)
    assert engine.generate(prompt, 2, options) == wanted
    assert engine.generate(prompt, 2, Options(seed=1, **SAMPLED), seed=5) == wanted
    pieces = list(engine.stream(prompt, 2, options))
    assert [piece.token for piece in pieces] == wanted.tokens
    assert [piece.logprob for piece in pieces] == wanted.logprobs
    assert "".join(piece.text for piece in pieces) == wanted.text
    assert engine.session(2).generate(prompt, options) == wanted
    assert engine.generate(prompt, 2, seed=6, **SAMPLED).tokens != wanted.tokens


def test_rows_of_a_sampled_batch_are_what_they_are_alone(engine: Engine) -> None:
    rows = prompts(engine, 5, 11, 8)
    seeds = [3, 2**64 - 1, 3]
    together = engine.generate(rows, [1, 3, 2], seed=seeds, **SAMPLED)
    for row, depth, seed, found in zip(rows, [1, 3, 2], seeds, together, strict=True):
        assert found.tokens == engine.generate(row, depth, seed=seed, **SAMPLED).tokens


def test_logprobs_are_of_the_models_distribution(engine: Engine) -> None:
    (prompt,) = prompts(engine, 9)
    found = engine.generate(prompt, 2, seed=5, **SAMPLED)
    logits = engine.logits(prompt + found.tokens, 2)[len(prompt) - 1 : -1].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, token, one in zip(log_p, found.tokens, found.logprobs, strict=True):
        assert one.token == token
        assert one.logprob == pytest.approx(row[token], abs=1e-4)
        assert [best for best, _ in one.best] == np.argsort(-row)[:3].tolist()
    assert engine.generate(prompt, 2, max_new_tokens=2).logprobs == []


def test_option_that_there_is_not_is_named(engine: Engine) -> None:
    with pytest.raises(EngineError, match="there is no option 'max_tokens'; allowed: max_new_t"):
        engine.generate("x", max_tokens=3)  # type: ignore[call-overload]


def test_options_are_given_by_name(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"options=64 is not allowed; give Options.* by its name"):
        engine.generate("x", 1, 64)  # type: ignore[call-overload]
