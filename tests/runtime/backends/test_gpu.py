"""What only a GPU can show of the backends cuda and trt. `make gpu-test`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from export import TrtOptions, export_bundle
from runtime import Engine
from runtime.backends.choose import choose_backend, list_providers
from runtime.backends.cuda import CudaMemory, DeviceArray, load_cuda
from runtime.backends.machine import find_machine
from runtime.backends.memory import HostMemory, Span
from runtime.bundle.contract import PRECISIONS
from runtime.parity.cases import REQUIRED
from runtime.parity.check import check_bundle
from tests.support.builders import find_builders
from tests.support.tiny import MAX_DEPTH

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*never trained:UserWarning"),
]
PROMPTS = [[5, 6, 7] * 9, [8, 9], list(range(3, 150))]
DEPTHS = [4, 2, 5]


@pytest.fixture(scope="module")
def bundles(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each precision."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for precision in PRECISIONS:
        made[precision] = folder / precision
        export_bundle(tiny_checkpoint, made[precision], max_depth=MAX_DEPTH, precision=precision)
    return made


@pytest.fixture(scope="module", params=["trt", "rtx"])
def flavour(request: pytest.FixtureRequest) -> str:
    """Each TensorRT that can build for this machine's GPU."""
    if request.param not in find_builders():
        pytest.skip(f"--trt {request.param} is not installed or does not build for this GPU")
    return str(request.param)


@pytest.fixture(scope="module")
def plan_of(
    flavour: str, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Exports the bundle of a precision with a plan, once."""
    folder = tmp_path_factory.mktemp(flavour)

    def make(precision: str) -> Path:
        out = folder / precision
        if not out.exists():
            export_bundle(
                tiny_checkpoint,
                out,
                max_depth=MAX_DEPTH,
                precision=precision,
                format="trt",
                trt=TrtOptions(flavour=flavour),
            )
        return out

    return make


@pytest.fixture(scope="module")
def on_gpu(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine.open(tiny_bundle, backend="cuda") as opened:
        yield opened


@pytest.mark.parametrize("precision", PRECISIONS)
def test_cuda_gives_what_pytorch_gave(bundles: dict[str, Path], precision: str) -> None:
    report = check_bundle(bundles[precision], backend="cuda")
    failed = [row for row in report.rows if row.verdict == "FAIL"]
    assert report.verdict in ("PASS", "AMBIGUOUS"), failed[:3]
    assert report.backend == "cuda"
    assert report.depths == tuple(range(1, MAX_DEPTH + 1))


def test_cuda_generates_what_the_cpu_does(on_gpu: Engine, engine: Engine) -> None:
    options = {"depth": DEPTHS, "max_new_tokens": 80}  # the caches grow on the way
    assert on_gpu.generate(PROMPTS, **options) == engine.generate(PROMPTS, **options)
    for prompt, found in zip(PROMPTS, on_gpu.logits(PROMPTS, DEPTHS), strict=True):
        expected = engine.logits(prompt, DEPTHS[PROMPTS.index(prompt)])
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("alignment", [16, 256])
@pytest.mark.parametrize("width", [20, 64])
def test_cuda_copies_and_clears_as_numpy_does(alignment: int, width: int) -> None:
    """Through the driver's own 2D and 3D copies, of parts with gaps and without."""
    generator = np.random.default_rng(0)
    memory, host = CudaMemory(load_cuda(), alignment), HostMemory()
    for inner, other_inner in (((3,), (3,)), ((5, 3), (5, 3)), ((5, 3), (2, 3))):
        shapes = ((3, *inner, 64, width), (3, *other_inner, 4, width))
        target, source = (memory.stack(6, shape, "float16") for shape in shapes)
        mine, other = (host.stack(6, shape, "float16") for shape in shapes)
        other[...] = generator.normal(size=other.shape)
        for part, values in zip(source, other, strict=True):
            memory.write(part, np.ascontiguousarray(values))
        for span in (
            Span(0, 0, 3, 9, 0, 4),
            Span(0, 0, 3, 63, 2, 1),
            Span(1, 0, 2, 5, 3, 1),
            Span(2, 1, 1, 20, 0, 3),
        ):
            memory.copy(target, source, span)
            host.copy(mine, other, span)
        moved = Span(0, 2, 1, 0, 0, 64)
        memory.copy(target, target, moved)
        host.copy(mine, mine, moved)
        for row, first, count in ((1, 4, 8), (2, 0, 64)):
            memory.clear(target, row, first, count)
            host.clear(mine, row, first, count)
        for part, values in zip(target, mine, strict=True):
            np.testing.assert_array_equal(memory.read(part), values)
        assert mine.any()


def test_cuda_rows_come_and_go(on_gpu: Engine, engine: Engine) -> None:
    decoder = on_gpu.new_decoder([2, 5, 3])
    decoder.prefill(PROMPTS)
    decoder.step([5, 6, 7])
    decoder.evict(0)  # the last row takes its place
    part = decoder.beside([4, 1])
    part.prefill([[9] * 70, [4, 5]])
    decoder.admit(2, part, 1)
    decoder.admit(3, part, 0)
    rows = [[*PROMPTS[2], 7], [*PROMPTS[1], 6], [4, 5], [9] * 70]
    for _ in decoder.score([[11, 12, 13], [14, 15], [16], [17, 18]]):
        pass
    decoder.truncate(0, len(rows[0]) + 1)
    decoder.truncate(3, 71)
    rows = [[*rows[0], 11], [*rows[1], 14, 15], [*rows[2], 16], [*rows[3], 17]]
    for token in range(20, 90):
        found = decoder.step([token] * 4)
        rows = [[*row, token] for row in rows]
    for row, depth, one in zip(rows, (3, 5, 1, 4), found, strict=True):
        expected = engine.new_decoder([depth]).prefill([row])[0]
        assert np.linalg.norm(one - expected) <= 1e-5 * np.linalg.norm(expected)


def test_cuda_cache_stays_on_the_gpu(on_gpu: Engine) -> None:
    cuda = load_cuda()
    decoder = on_gpu.new_decoder([3, 3])
    decoder.prefill([[5, 6, 7], [8]])
    decoder.step([5, 5])
    before = decoder.cache.named()
    for _ in range(40):
        decoder.step([5, 5])
    for name, one in decoder.cache.named().items():
        assert isinstance(one, DeviceArray)
        assert one.address == before[name].address  # type: ignore[attr-defined]
        error, attributes = cuda.cudaPointerGetAttributes(one.address)
        assert int(error) == 0
        assert attributes.type == cuda.cudaMemoryType.cudaMemoryTypeDevice


def test_cuda_memory_is_given_back(on_gpu: Engine) -> None:
    cuda = load_cuda()

    def free_bytes() -> int:
        error, free, _ = cuda.cudaMemGetInfo()
        assert int(error) == 0
        return int(free)

    for _ in range(2):  # ONNX Runtime's own arena grows at first
        on_gpu.generate([5, 6], max_new_tokens=200)
    before = free_bytes()
    for _ in range(5):
        on_gpu.generate([5, 6], max_new_tokens=200)
    assert before - free_bytes() < 8 << 20


def test_cuda_session_keeps_its_cache_between_turns(on_gpu: Engine, engine: Engine) -> None:
    answers = []
    for one in (on_gpu, engine):
        session = one.session(depth=2)
        answers.append([session.generate("Hello", max_new_tokens=5) for _ in range(3)])
    assert answers[0] == answers[1]


def test_auto_takes_the_gpu(bundles: dict[str, Path]) -> None:
    with Engine.open(bundles["bf16"]) as opened:
        assert opened.backend == "cuda"
        assert choose_backend(opened.manifest, "auto", find_machine(), list_providers())
        assert len(opened.generate("Hello", depth=2, max_new_tokens=5).tokens) >= 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_trt_gives_what_pytorch_gave(plan_of: Callable[[str], Path], precision: str) -> None:
    # Prefill, decoding, padded and mixed batches and greedy texts: whatever is recorded.
    report = check_bundle(plan_of(precision), backend="trt")
    assert {row.measurement.kind for row in report.rows} == set(REQUIRED)
    failed = [f"{row.measurement.case}: {row.reason}" for row in report.rows if row.reason]
    assert report.verdict in ("PASS", "AMBIGUOUS"), failed[:5]
    assert report.backend == "trt"


def test_trt_generates_what_the_cpu_does(plan_of: Callable[[str], Path], engine: Engine) -> None:
    options = {"depth": DEPTHS, "max_new_tokens": 80}
    with Engine.open(plan_of("fp32")) as opened:
        assert opened.backend == "trt"
        assert opened.generate(PROMPTS, **options) == engine.generate(PROMPTS, **options)
