"""The GPU's memory, cache and bindings, on a stand-in for CUDA with host memory."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Engine, EngineError
from runtime.backends.cuda import CudaMemory, output_shapes
from runtime.backends.memory import HostMemory
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


@pytest.mark.parametrize("alignment", [16, 256])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_copy_equals_numpy(cuda: FakeCuda, alignment: int, dtype: str) -> None:
    generator = np.random.default_rng(0)
    memory, host = CudaMemory(cuda, alignment), HostMemory()
    target, source = (memory.stack(3, (2, 5, slots, 8), dtype) for slots in (9, 4))
    mine, other = (host.stack(3, (2, 5, slots, 8), dtype) for slots in (9, 4))
    other[...] = generator.normal(size=other.shape)
    for part, values in zip(source, other, strict=True):
        memory.write(part, np.ascontiguousarray(values))
    for at, first, count in ((0, 0, 4), (7, 2, 2), (5, 3, 1), (0, 0, 0)):
        memory.copy(target, at, source, first, count)
        host.copy(mine, at, other, first, count)
        for part, values in zip(target, mine, strict=True):
            np.testing.assert_array_equal(memory.read(part), values)
    assert all(part.address % alignment == 0 for part in target)
    assert source.has_gaps == (alignment == 256 and dtype == "float16")


def test_whole_stack_moves_in_one_copy(cuda: FakeCuda) -> None:
    memory = CudaMemory(cuda, 16)
    target, source = (memory.stack(40, (1, 3, slots, 64), "float16") for slots in (64, 1))
    memory.copy(target, 5, source, 0, 1)
    assert cuda.calls.count("cudaMemcpy2DAsync") == 1


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
