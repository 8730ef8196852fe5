"""The GPU's memory, cache and bindings, on a stand-in for CUDA with host memory."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Engine, EngineError
from runtime.backends.cuda import CudaMemory, output_shapes
from runtime.backends.memory import HostMemory, Span
from runtime.backends.ort import open_cpu, open_session
from runtime.backends.ort_cuda import CudaBackend, load_libraries
from runtime.bundle.reader import open_bundle
from runtime.decode.decoder import Decoder
from runtime.parity.cases import load_cases, recorded_results
from runtime.parity.replay import run
from runtime.parity.verdict import AMBIGUOUS, PASS, Bounds, compare
from tests.support.decoding import decode
from tests.support.fake_cuda import CudaLikeSession, FakeCuda


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def backend(tiny_bundle: Path, cuda: FakeCuda) -> CudaBackend:
    """The CUDA backend, its graph on the CPU provider."""
    bundle = open_bundle(tiny_bundle)
    session = open_session(bundle, "CPUExecutionProvider", {}, 1)
    return CudaBackend(CudaLikeSession(session), bundle.manifest, cuda, device="cpu")


SPANS = [
    Span(0, 0, 3, 0, 0, 4),  # every row
    Span(0, 0, 3, 7, 2, 2),
    Span(1, 0, 2, 5, 3, 1),  # two rows
    Span(2, 1, 1, 8, 0, 1),  # one, at the last slot
    Span(0, 0, 0, 0, 0, 4),  # nothing
    Span(0, 0, 3, 0, 0, 0),
]


@pytest.mark.parametrize("alignment", [16, 256])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width", [8, 20])
@pytest.mark.parametrize(
    ("inner", "other_inner"), [((2,), (2,)), ((4, 2), (4, 2)), ((4, 2), (3, 2)), ((1,), (5,))]
)
def test_copy_and_clear_equal_numpy(
    cuda: FakeCuda,
    alignment: int,
    dtype: str,
    width: int,
    inner: tuple[int, ...],
    other_inner: tuple[int, ...],
) -> None:
    generator = np.random.default_rng(0)
    memory, host = CudaMemory(cuda, alignment), HostMemory()
    shapes = [(3, *inner, 9, width), (3, *other_inner, 4, width)]
    for parts in (1, 5):
        target, source = (memory.stack(parts, shape, dtype) for shape in shapes)
        mine, other = (host.stack(parts, shape, dtype) for shape in shapes)
        other[...] = generator.normal(size=other.shape)
        for part, values in zip(source, other, strict=True):
            memory.write(part, np.ascontiguousarray(values))
        for span in SPANS:
            memory.copy(target, source, span)
            host.copy(mine, other, span)
            for part, values in zip(target, mine, strict=True):
                np.testing.assert_array_equal(memory.read(part), values)
        moved = Span(0, 2, 1, 0, 0, 9)  # inside one
        memory.copy(target, target, moved)
        host.copy(mine, mine, moved)
        for row, first, count in ((1, 4, 5), (2, 0, 9), (0, 3, 0)):
            memory.clear(target, row, first, count)
            host.clear(mine, row, first, count)
            for part, values in zip(target, mine, strict=True):
                np.testing.assert_array_equal(memory.read(part), values)
        assert mine.any()
        assert all(part.address % alignment == 0 for part in target)


def test_stacks_have_gaps_only_where_they_must(cuda: FakeCuda) -> None:
    stack = CudaMemory(cuda, 256).stack(3, (2, 5, 4, 8), "float16")
    assert (stack.has_gaps, stack.part_bytes, stack.stride) == (True, 640, 768)
    assert not CudaMemory(cuda, 16).stack(3, (2, 5, 4, 8), "float16").has_gaps


def copies(cuda: FakeCuda) -> int:
    return sum(call.startswith("cudaMemcpy") for call in cuda.calls)


def test_copies_take_few_launches(cuda: FakeCuda) -> None:
    """Of SmolLM2's cache: 40 parts, 3 heads of 64; 8 steps of the loop."""
    layers, loop = (40, 3), (2, 8, 3)
    for alignment in (16, 256):
        memory = CudaMemory(cuda, alignment)
        for (parts, *inner), rows in itertools.product((layers, loop), (1, 4)):
            shape = (rows, *inner)
            target, source = (memory.stack(parts, (*shape, n, 64), "float16") for n in (64, 1))
            for span, most in (
                (Span(0, 0, rows, 5, 0, 1), 1),  # all rows, of one length
                (Span(rows - 1, 0, 1, 5, 0, 1), 1),  # one row
                (Span(0, 0, rows - 1, 5, 0, 1), 1),
            ):
                before = copies(cuda)
                memory.copy(target, source, span)
                assert copies(cuda) - before <= most
    # A row of less depth has fewer entries.
    target, source = (memory.stack(2, (4, n, 3, 64, 64), "float16") for n in (8, 5))
    for rows, most in ((4, 1), (3, 2)):
        before = copies(cuda)
        memory.copy(target, source, Span(0, 0, rows, 5, 0, 1))
        assert copies(cuda) - before == most


def test_bfloat16_is_rounded_to_even_and_read_as_float32(cuda: FakeCuda) -> None:
    import torch

    values = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    values[0, :4] = (1 + 2**-8, 1 + 3 * 2**-8, 3e38, -0.0)  # the first two lie half-way
    memory = CudaMemory(cuda, 16)
    found = memory.read(memory.put(values, "bfloat16"))
    np.testing.assert_array_equal(found, torch.tensor(values).bfloat16().float().numpy())


def test_memory_is_zero_and_freed_with_its_last_array(cuda: FakeCuda) -> None:
    memory = CudaMemory(cuda, 256)
    array = memory.stack(2, (3, 4), "float32")
    part = next(iter(array))
    assert not memory.read(part).any()
    del array
    assert len(cuda.blocks) == 1
    del part
    gc.collect()
    assert not cuda.blocks


def test_reshape_keeps_the_size_and_refuses_gaps(cuda: FakeCuda) -> None:
    memory = CudaMemory(cuda, 256)
    assert memory.zeros((2, 3, 4), "float32").reshape((2, 3, 1, 4)).shape == (2, 3, 1, 4)
    with pytest.raises(EngineError, match=r"\[2, 3, 4\] on the GPU can't become \[2, 3\]"):
        memory.zeros((2, 3, 4), "float32").reshape((2, 3))
    with pytest.raises(EngineError, match="can't become"):
        memory.stack(2, (3,), "float32").reshape((6,))


def test_libraries_are_found_in_another_folder_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda **given: asked.append(given))
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0")
    for name in ("cu13", "cudnn"):
        (tmp_path / "nvidia" / name / "lib").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    load_libraries()
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "onnxruntime" / "__init__.py"))
    load_libraries()  # they lie beside it: its own search
    assert [(one["cuda"], one["cudnn"]) for one in asked] == [(True, False), (False, True)] * 2
    assert [one["directory"] for one in asked] == [
        *(str(tmp_path / "nvidia" / name / "lib") for name in ("cu13", "cudnn")),
        *(None, None),
    ]


def test_no_gpu_is_one_line(cuda: FakeCuda) -> None:
    cuda.broken = True
    with pytest.raises(EngineError, match="cudaStreamCreate failed with cudaErrorNoDevice"):
        CudaMemory(cuda, 16)


def test_decoding_equals_the_cpu(backend: CudaBackend, engine: Engine) -> None:
    rows, depths = [[5, 6, 7] * 9, [8, 9]], [4, 2]
    found = decode(Decoder(backend, engine.manifest, depths), rows, 80)  # the cache grows twice
    np.testing.assert_allclose(
        found, decode(engine.new_decoder(depths), rows, 80), rtol=1e-4, atol=1e-4
    )


def test_scores_equal_the_cpu(backend: CudaBackend, engine: Engine) -> None:
    rows = [list(range(3, 203)), list(range(5, 100))]
    found = Decoder(backend, engine.manifest, [2, 2]).score(rows)
    for (start, one), (other_start, other) in zip(
        found, engine.new_decoder([2, 2]).score(rows), strict=True
    ):
        assert start == other_start
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_step_moves_only_tokens_mask_and_logits(
    backend: CudaBackend, engine: Engine, cuda: FakeCuda
) -> None:
    manifest = engine.manifest
    decoder = Decoder(backend, manifest, [3])
    decoder.prefill([[5, 6, 7]])
    decoder.step([5])
    buffers = {name: one.address for name, one in decoder.cache.named().items()}
    cuda.calls.clear()
    cuda.host_bytes, before = 0, decoder.host_bytes
    decoder.step([5])
    # Logits come through CUDA; ids, positions and mask go through ONNX Runtime's own copies.
    logits = 4 * manifest.model.vocab_size
    assert cuda.host_bytes == logits
    # int64: an id, a position, a logit index, two depths, and the mask of 64 slots and the token.
    assert decoder.host_bytes - before == logits + 8 * (1 + 1 + 1 + 2 + 65)
    assert cuda.calls.count("cudaMalloc") == 0
    assert cuda.calls.count("cudaMemcpy2DAsync") == 3
    assert buffers == {name: one.address for name, one in decoder.cache.named().items()}


def test_unused_slots_are_zero(backend: CudaBackend, engine: Engine) -> None:
    # A slot that no row uses is masked, but 0 times NaN would still spoil the sum.
    decoder = Decoder(backend, engine.manifest, [2])
    decoder.prefill([[5, 6, 7]])
    memory = backend.new_memory()
    for name, one in decoder.cache.named().items():
        if name.startswith("past_key_values."):
            assert not memory.read(one)[..., 3:, :].any()


def test_buffers_are_freed_with_the_decoder(
    backend: CudaBackend, engine: Engine, cuda: FakeCuda
) -> None:
    decoder = Decoder(backend, engine.manifest, [2])
    decode(decoder, [[5, 6, 7]], 100)
    assert cuda.blocks
    del decoder
    gc.collect()
    assert not cuda.blocks


def test_recorded_cases_pass(backend: CudaBackend, engine: Engine, tiny_bundle: Path) -> None:
    manifest = engine.manifest
    cases = load_cases(tiny_bundle / "cases.safetensors")
    bounds = Bounds(manifest.parity.relative_l2)
    rows = compare(run(cases, backend, manifest), recorded_results(cases), bounds).rows
    assert len(rows) > len(cases)
    assert {row.verdict for row in rows} <= {PASS, AMBIGUOUS}


def test_run_refuses_a_missing_input_and_a_wrong_shape(
    backend: CudaBackend, tiny_bundle: Path
) -> None:
    case = load_cases(tiny_bundle / "cases.safetensors")[0]
    inputs = dict(case.inputs)
    mask = inputs.pop("attention_mask")
    with pytest.raises(EngineError, match="the input attention_mask is missing"):
        backend.run(inputs)
    inputs["attention_mask"] = mask
    inputs["row_depth"] = np.ones(7, np.int64)
    with pytest.raises(EngineError, match="row_depth: its batch is 7"):
        backend.run(inputs)


def test_failure_inside_onnxruntime_is_one_line(backend: CudaBackend, tiny_bundle: Path) -> None:
    case = load_cases(tiny_bundle / "cases.safetensors")[0]
    inputs = dict(case.inputs)
    inputs["input_ids"] = np.full_like(inputs["input_ids"], 10**6)
    with pytest.raises(EngineError, match=r"^ONNX Runtime failed: .*") as caught:
        backend.run(inputs)
    assert "\n" not in str(caught.value)


def test_output_shapes_of_a_decoding_step(
    backend: CudaBackend, engine: Engine, tiny_bundle: Path
) -> None:
    graph = engine.manifest.graphs.onnx
    case = load_cases(tiny_bundle / "cases.safetensors")[0]
    expected = open_cpu(open_bundle(tiny_bundle), 1).run(case.inputs)
    found = output_shapes(graph, case.inputs)
    assert found == {name: one.shape for name, one in expected.items()}
