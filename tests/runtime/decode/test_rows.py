"""Rows of a batch that come, go and are cut, against each of them alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from runtime import Engine, EngineError, Generation, Options
from runtime.backends.cuda import CudaMemory
from runtime.backends.memory import Backend, HostMemory
from runtime.backends.ort import open_cpu, open_session
from runtime.backends.ort_cuda import CudaBackend
from runtime.bundle.contract import PAST_PREFIX, RECURRENT
from runtime.bundle.reader import open_bundle
from runtime.decode.decoder import Decoder, group_lengths
from runtime.decode.generation import serve
from runtime.decode.kv_cache import KVCache
from tests.support.decoding import WatchedBackend
from tests.support.fake_cuda import CudaLikeSession, FakeCuda

pytestmark = pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")


class AlignedBackend(CudaBackend):
    """The CUDA backend with TensorRT's alignment, which leaves gaps in stacks."""

    def new_memory(self) -> CudaMemory:
        return CudaMemory(self._cuda, 256)


@pytest.fixture(scope="module", params=["cpu", "cuda", "aligned"])
def backend(request: pytest.FixtureRequest, tiny_bundle: Path) -> Backend:
    """The host's memory, and the GPU's on a stand-in for CUDA."""
    return open_backend(request.param, tiny_bundle)


def open_backend(kind: str, folder: Path) -> Backend:
    bundle = open_bundle(folder)
    if kind == "cpu":
        return open_cpu(bundle, 1)
    session = CudaLikeSession(open_session(bundle, "CPUExecutionProvider", {}, 1))
    made = CudaBackend if kind == "cuda" else AlignedBackend
    return made(session, bundle.manifest, FakeCuda(), device="cpu")


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected) + 1e-6


def draw(generator: np.random.Generator, length: int) -> list[int]:
    return [int(one) for one in generator.integers(3, 200, length)]


def read_cache(decoder: Decoder) -> dict[str, np.ndarray]:
    """What the graph is bound to, by name."""
    return {name: decoder._memory.read(one).copy() for name, one in decoder.cache.named().items()}


def check_rows(decoder: Decoder, rows: list[list[int]], engine: Engine) -> None:
    """Keys, values, sums, mask and positions are those of each row alone; free slots are zero."""
    cache = decoder.cache
    assert cache.lengths == [len(row) for row in rows]
    assert cache.longest == max(cache.lengths, default=0)
    assert cache.positions[:, 0].tolist() == cache.lengths
    assert cache.valid.shape == (len(rows), cache.capacity + 1)
    found = read_cache(decoder)
    for number, tokens in enumerate(rows):
        length, depth = len(tokens), int(cache.row_depth[number])
        expected_mask = [1] * length + [0] * (cache.capacity - length) + [1]
        assert cache.valid[number].tolist() == expected_mask
        alone = engine.new_decoder([depth])
        if tokens:
            alone.prefill([tokens])
        expected = read_cache(alone)
        for name, array in found.items():
            mine, other = array[number], expected[name][0]
            if not name.startswith(PAST_PREFIX):
                assert_close(mine[:depth], other)
                continue
            assert not mine[..., length:, :].any(), name
            # What steps beyond a row's depth leave is undefined.
            looped = depth * engine.manifest.model.recurrent_layers
            entries = slice(looped) if RECURRENT in name else slice(None)
            assert_close(mine[entries, ..., :length, :], other[entries, ..., :length, :])


@pytest.mark.parametrize("seed", range(6))
def test_random_rows_are_what_they_are_alone(backend: Backend, engine: Engine, seed: int) -> None:
    live(backend, engine, seed)


@pytest.mark.parametrize("kind", ["cpu", "aligned"])
def test_random_rows_of_a_block_are_what_they_are_alone(block_bundle: Path, kind: str) -> None:
    """Two layers a step: twice the entries, of which a row of depth d uses the first 2 d."""
    with Engine.open(block_bundle, backend="cpu", threads=1) as engine:
        live(open_backend(kind, block_bundle), engine, seed=0)


def live(backend: Backend, engine: Engine, seed: int) -> None:
    """Rows are admitted, fed, cut and evicted at random, and compared with each alone."""
    generator = np.random.default_rng(seed)
    depths = generator.integers(1, 6, 2).tolist()
    rows = [draw(generator, int(generator.integers(1, 70))) for _ in depths]
    decoder = Decoder(backend, engine.manifest, depths)
    decoder.prefill(rows)
    done = set()
    for _ in range(40):
        action = generator.choice(["step", "step", "admit", "evict", "cut", "feed"])
        done.add(str(action))
        row = int(generator.integers(0, len(rows))) if rows else 0
        match action:
            case "admit" if len(rows) < 5:
                new_depths = generator.integers(1, 6, 2).tolist()
                prompts = [draw(generator, int(generator.integers(1, 150))) for _ in range(2)]
                part = decoder.beside(new_depths)
                part.prefill(prompts)
                source = int(generator.integers(0, 2))
                decoder.admit(len(rows), part, source)
                rows.append(prompts[source])
            case "evict" if rows:
                decoder.evict(row)
                rows[row] = rows[-1]
                rows.pop()
            case "feed" if rows:  # several tokens at once, not as many for each row
                new = [draw(generator, int(generator.integers(1, 6))) for _ in rows]
                logits = decoder.prefill(new)
                rows = [[*one, *more] for one, more in zip(rows, new, strict=True)]
                compare_logits(decoder, rows, logits, engine)
            case "cut" if rows:  # tokens that are drafted, of which some are taken back
                new = [draw(generator, int(generator.integers(1, 6))) for _ in rows]
                for _ in decoder.score(new):
                    pass
                for number, more in enumerate(new):
                    kept = int(generator.integers(1, len(more) + 1))
                    rows[number] = [*rows[number], *more[:kept]]
                    decoder.truncate(number, len(rows[number]))
            case "step" if rows:
                tokens = draw(generator, len(rows))
                logits = decoder.step(tokens)
                rows = [[*one, token] for one, token in zip(rows, tokens, strict=True)]
                compare_logits(decoder, rows, logits, engine)
        if generator.random() < 0.2:
            check_rows(decoder, rows, engine)
    check_rows(decoder, rows, engine)
    assert len(done) == 5


def compare_logits(
    decoder: Decoder, rows: list[list[int]], logits: np.ndarray, engine: Engine
) -> None:
    for tokens, depth, found in zip(rows, decoder.cache.row_depth, logits, strict=True):
        alone = engine.new_decoder([int(depth)])
        assert_close(found, alone.prefill([tokens])[0])


def test_one_row_is_bit_for_bit_what_it_is_after_others_left(engine: Engine) -> None:
    """The capacity follows the longest row, so the arithmetic is the same, too."""
    generator = np.random.default_rng(0)
    short, long = draw(generator, 9), draw(generator, 300)
    alone, both = engine.new_decoder([3]), engine.new_decoder([5, 3])
    expected = alone.prefill([short])
    np.testing.assert_array_equal(both.prefill([long, short])[1], expected[0])
    both.evict(0)
    assert both.cache.capacity == alone.cache.capacity == 64
    for token in draw(generator, 70):
        np.testing.assert_array_equal(both.step([token]), alone.step([token]))


def test_rows_of_unequal_prompts_hold_no_padding(backend: Backend, engine: Engine) -> None:
    generator = np.random.default_rng(1)
    rows = [draw(generator, length) for length in (3, 140, 60, 1, 141)]
    decoder = Decoder(backend, engine.manifest, [2, 5, 1, 3, 4])
    decoder.prefill(rows)
    assert decoder.cache.capacity == 192  # of 141
    check_rows(decoder, rows, engine)


def test_empty_batch_is_filled_again(backend: Backend, engine: Engine) -> None:
    decoder = Decoder(backend, engine.manifest, [2, 1])
    decoder.prefill([[5, 6, 7], [8]])
    decoder.evict(0)
    decoder.evict(0)
    assert (decoder.cache.batch, decoder.cache.capacity, decoder.cache.longest) == (0, 0, 0)
    keys = decoder.cache._keys
    held = keys.layers.nbytes + keys.recurrent.nbytes
    assert held <= 2 * 256  # empty stacks still have an address on a GPU
    with pytest.raises(EngineError, match="0 tokens for a batch of 0 rows"):
        decoder.step([])
    with pytest.raises(EngineError, match="there is no row 0"):
        decoder.evict(0)
    part = decoder.beside([4])
    part.prefill([[9, 10]])
    decoder.admit(0, part)
    compare_logits(decoder, [[9, 10, 11]], decoder.step([11]), engine)


def test_row_that_is_cut_to_nothing_starts_anew(backend: Backend, engine: Engine) -> None:
    decoder = Decoder(backend, engine.manifest, [3, 2])
    decoder.prefill([[5, 6, 7], [8, 9]])
    decoder.truncate(0, 0)
    check_rows(decoder, [[], [8, 9]], engine)
    compare_logits(decoder, [[4], [8, 9, 5]], decoder.step([4, 5]), engine)


def test_row_is_cut_only_where_its_sum_is_known(engine: Engine) -> None:
    decoder = engine.new_decoder([2, 2])
    for _ in decoder.score([[5, 6, 7, 8], [9, 10]]):
        pass
    decoder.truncate(0, 4)  # nothing to do
    decoder.truncate(0, 2)
    decoder.truncate(1, 1)
    check_rows(decoder, [[5, 6], [9]], engine)
    with pytest.raises(EngineError, match=r"row 1 holds 1 tokens, not 2; allowed: 0\.\.1"):
        decoder.truncate(1, 2)
    with pytest.raises(EngineError, match="there is no row 2; the batch has 2 rows"):
        decoder.truncate(2, 0)
    decoder.step([11, 12])
    words = "row 0 can't be cut to 2 tokens: the last call did not give the pooled sum at position"
    with pytest.raises(EngineError, match=f"{words} 1; ask for it with logit_index"):
        decoder.truncate(0, 2)
    check_rows(decoder, [[5, 6, 11], [9, 12]], engine)


@pytest.mark.parametrize("took", [[4, 2], [3, 0], [3, -1], [2**58, 1]])
def test_a_graph_that_says_what_no_row_took_is_refused(engine: Engine, took: list[int]) -> None:
    cache = engine.new_decoder([3, 2]).cache
    with pytest.raises(EngineError, match=r"a row took -?\d+ steps, allowed are 1 to [23]; export"):
        cache.settle(took)
    assert cache.row_depth.tolist() == [3, 2]
    cache.settle([1, 2])
    assert cache.row_depth.tolist() == [1, 2]


def test_padding_before_a_short_row_gives_no_sum(engine: Engine) -> None:
    """Its running sum is that of the row's last token, but it is asked for in another call."""
    decoder = engine.new_decoder([2, 2])
    decoder.prefill([[5, 6, 7], [9, 10, 11]])
    for _ in decoder.score([[5, 6, 7, 8], [9]]):
        pass
    with pytest.raises(EngineError, match="row 1 can't be cut to 2 tokens"):
        decoder.truncate(1, 2)


def test_other_poolings_are_cut_where_they_can_be(engine: Engine) -> None:
    for pooling, refused in (("mean", [1, 3]), ("token", [])):
        model = dataclasses.replace(engine.manifest.model, pooling=pooling)
        manifest = dataclasses.replace(engine.manifest, model=model)
        for length in (0, 1, 3, 4, 6):
            cache = KVCache(manifest, HostMemory(), [2], 512)
            cache.reserve(64)
            for count in (4, 2, 1):  # the mean is that of the first 4
                index = np.full((1, 1), count - 1)
                cache.append(cache.new_keys(count), cache.new_sums(1), [count], index)
            if length in refused:
                with pytest.raises(EngineError, match="its mean is that of the first 4; keep at"):
                    cache.truncate(0, length)
            else:
                cache.truncate(0, length)
                assert cache.lengths == [length]


def test_admission_needs_a_free_row_of_the_same_memory(engine: Engine) -> None:
    decoder = engine.new_decoder([2])
    decoder.prefill([[5, 6]])
    part = decoder.beside([2])
    part.prefill([[7]])
    for row in (0, 2, -1):
        with pytest.raises(EngineError, match=f"row {row} of 1 is not free; evict .* admit row 1"):
            decoder.admit(row, part)
    other = engine.new_decoder([2])
    other.prefill([[7]])
    with pytest.raises(EngineError, match="from another memory; prefill it beside"):
        decoder.admit(1, other)
    decoder.admit(1, part)
    check_rows(decoder, [[5, 6], [7]], engine)
    check_rows(part, [[7]], engine)


def test_step_takes_one_token_a_row(engine: Engine) -> None:
    decoder = engine.new_decoder([2, 2])
    decoder.prefill([[5], [6]])
    with pytest.raises(EngineError, match="1 tokens for a batch of 2 rows; give one a row"):
        decoder.step([5])


def test_rows_that_ended_are_no_longer_fed(backend: Backend, engine: Engine) -> None:
    """A batch with one long answer costs what one row costs once the others have ended."""
    generator = np.random.default_rng(2)
    watched = WatchedBackend(backend)
    wanted = [3, 90, 5, 3, 40]
    depths = [5, 2, 1, 4, 3]
    prompts = [draw(generator, length) for length in (200, 4, 8, 6, 5)]
    requests = [
        engine.new_request(ids, depth, Options(max_new_tokens=new, temperature=1.0, seed=number))
        for number, (ids, depth, new) in enumerate(zip(prompts, depths, wanted, strict=True))
    ]
    rows = [engine.new_row(one) for one in requests]
    decoder = Decoder(watched, engine.manifest, depths)
    pieces = list(serve(decoder, requests, rows, lambda: False))
    found = [row.result() for row in rows]
    for one, result in zip(requests, found, strict=True):
        assert result == alone(engine, one.ids, one.depth, one.options)
    ends = [len(result.tokens) for result in found]
    steps = [fed for fed in watched.fed if fed[1] == 1]
    assert [fed[0] for fed in steps] == [
        sum(end > fed for end in ends) for fed in range(1, max(ends))
    ]
    assert len(pieces) == max(ends)
    for number, end in enumerate(ends):
        assert [one[number] is not None for one in pieces] == [
            index < end for index in range(len(pieces))
        ]
    assert watched.shapes["past_key_values.0.key"][2] == 128  # 94 slots: not the 200 of another
    prefilled = sum(fed[0] * fed[1] for fed in watched.fed if fed[1] > 1)
    assert prefilled <= sum(map(len, prompts)) + 2 * backend.call_tokens  # padding of two calls


def alone(engine: Engine, ids: tuple[int, ...], depth: int, options: Options) -> Generation:
    return engine.generate(list(ids), depth, options)


def test_cancelled_batch_reports_only_rows_that_went_on(engine: Engine) -> None:
    requests = [
        engine.new_request([5, 6, number], 2, Options(max_new_tokens=new))
        for number, new in ((7, 2), (8, 60), (9, 60))
    ]
    rows = [engine.new_row(one) for one in requests]
    asked = iter([False] * 4 + [True])
    *_, last = serve(engine.new_decoder([2, 2, 2]), requests, rows, lambda: next(asked))
    assert [piece and piece.finish_reason for piece in last] == [None, "cancelled", "cancelled"]
    assert [len(row.tokens) for row in rows] == [2, 4, 4]


def test_prompts_are_grouped_so_that_padding_never_costs_more_than_a_call() -> None:
    assert group_lengths([7, 7, 7], 32) == [[0, 1, 2]]
    assert group_lengths([7], 0) == [[0]]
    assert group_lengths([3, 500, 10, 499], 32) == [[1, 3], [0, 2]]
    assert group_lengths([1, 2, 3], 0) == [[2], [1], [0]]
    generator = np.random.default_rng(0)
    for _ in range(200):
        lengths = draw(generator, int(generator.integers(1, 20)))
        groups = group_lengths(lengths, 32)
        assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
        for group in groups:
            sizes = [lengths[number] for number in group]
            assert max(sizes) * len(sizes) - sum(sizes) <= 32


def test_few_copies_a_step(engine: Engine, tiny_bundle: Path) -> None:
    """On a GPU: three where all rows are as long, two a row and one where they are not."""
    cuda, bundle = FakeCuda(), open_bundle(tiny_bundle)
    session = CudaLikeSession(open_session(bundle, "CPUExecutionProvider", {}, 1))
    backend = CudaBackend(session, bundle.manifest, cuda, device="cpu")
    for prompts, most in (([[5, 6]] * 4, 3), ([[5], [5, 6], [5, 6, 7]], 2 * 3 + 1)):
        decoder = Decoder(backend, engine.manifest, [3] * len(prompts))
        decoder.prefill(prompts)
        decoder.step([5] * len(prompts))
        cuda.calls.clear()
        cuda.host_bytes = 0
        decoder.step([5] * len(prompts))
        assert cuda.host_bytes == 4 * engine.manifest.model.vocab_size * len(prompts)
        assert sum(call.startswith("cudaMemcpy") for call in cuda.calls) == most
        assert cuda.calls.count("cudaMalloc") == 0
