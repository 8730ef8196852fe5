"""Building plans: the timing cache, and builds that are refused, fail, crash or are stopped."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError
from export.options import TrtOptions
from export.tensorrt.builder import build_plans
from export.tensorrt.messages import clean, describe_builder_error, describe_crash
from export.tensorrt.process import build_in_child
from runtime.backends.gpu import describe_gpu
from runtime.backends.trt_flavours import RTX
from runtime.bundle.plans import PlanSpec, ProfileSpec, RangeSpec
from tests.support.fake_cuda import stand_in_for_builder, stand_in_for_tensorrt
from tests.support.paths import ROOT
from tests.support.processes import start_process
from tests.support.tensorrt import CENTRE, FACTS, HERE, PLANS, builds
from tests.support.tiny import MAX_DEPTH


def build(file: Path, out: Path, **options: Any) -> list[PlanSpec]:
    chosen: dict[str, Any] = {"flavour": "rtx", "compute_capabilities": ("8.9",), **options}
    return build_plans(file, out, TrtOptions(**chosen), FACTS)[0]


def write_graph(file: Path, operator: str, domain: str = "", with_depth: bool = False) -> Path:
    """A graph of one node, `only`, from x [batch, 4] to y; nothing reads its depth."""
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("x", "y")]
    named = {"depth": [1], "input_ids": ["batch", "sequence"], "logit_index": ["batch", "logits"]}
    depth = [
        helper.make_tensor_value_info(name, TensorProto.INT64, dims)
        for name, dims in (named.items() if with_depth else ())
    ]
    node = helper.make_node(operator, ["x"], ["y"], name="only", domain=domain)
    graph = helper.make_graph([node], "g", [*ends[:1], *depth], ends[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ours", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), file)
    return file


def request(file: Path, plan: Path, module: str = "tensorrt_rtx_bindings") -> dict[str, Any]:
    profile = ProfileSpec("decode", (RangeSpec("x", (1, 4), (1, 4), (2, 4)),), ())
    return {
        "module": module,
        "title": RTX.title,
        "onnx": str(file),
        "plan": str(plan),
        "capabilities": ["8.9"],
        "profiles": [dataclasses.asdict(profile)],
        "refit": False,
        "workspace_mb": 64,
        "timing_cache": None,
    }


def test_timing_cache_is_made_by_the_first_build_and_grows_with_the_next(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_tensorrt(monkeypatch)
    cache, sizes = tmp_path / "kernels.cache", []
    for number in range(2):
        out = tmp_path / f"plans{number}"
        build_plans(tiny_bundle / "model.onnx", out, TrtOptions(timing_cache=cache), FACTS)
        assert [file.name for file in out.iterdir()] == ["trt-sm90.plan"]
        sizes.append(cache.read_bytes().count(b"one build"))
    assert sizes == [1, 2]
    assert {file.name for file in tmp_path.iterdir()} == {"kernels.cache", "plans0", "plans1"}


def test_timing_cache_of_another_tensorrt_is_refused_and_kept(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_tensorrt(monkeypatch)
    cache = tmp_path / "kernels.cache"
    cache.write_bytes(b"something else")
    with pytest.raises(
        ExportError, match=r"kernels\.cache is not of TensorRT 10\.14\.1 and this GPU"
    ):
        build_plans(
            tiny_bundle / "model.onnx", tmp_path / PLANS, TrtOptions(timing_cache=cache), FACTS
        )
    assert cache.read_bytes() == b"something else"
    assert [file.name for file in tmp_path.iterdir()] == ["kernels.cache"]


def test_flavour_without_a_timing_cache_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_builder(monkeypatch, HERE)
    with pytest.raises(ExportError, match=r"timing_cache: TensorRT for RTX times no kernels"):
        build(tmp_path / "x.onnx", tmp_path / PLANS, timing_cache=tmp_path / "cache")


def test_graph_without_a_depth_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_builder(monkeypatch, CENTRE)
    file = write_graph(tmp_path / "tanh.onnx", "Tanh")
    with pytest.raises(ExportError, match="the graph has no input input_ids"):
        build_plans(file, tmp_path / PLANS, TrtOptions(), FACTS)
    assert not (tmp_path / PLANS).exists()


@builds
@pytest.mark.parametrize(
    ("capability", "words"),
    [
        # Source: what TensorRT-RTX 1.7.1 has, trt.ComputeCapability.
        ("9.0", ["9.0", "8.9, 12.0", "Hopper GPU needs `tensorrt`"]),
        ("6.1", ["6.1", "allowed: 7.5"]),
        # Turing has no float32 matrix products in TensorRT-RTX.
        ("7.5", ["'layers.0.node_matmul'", "FP32 GEMM", "--precision fp16"]),
    ],
)
def test_capability_that_cannot_be_built_is_one_line(
    tiny_bundle: Path, tmp_path: Path, capability: str, words: list[str]
) -> None:
    with pytest.raises(ExportError) as caught:
        build(tiny_bundle / "model.onnx", tmp_path / PLANS, compute_capabilities=(capability,))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert "/_src/" not in message
    for word in words:
        assert word in message
    assert not list(tmp_path.iterdir())


@builds
def test_operator_that_tensorrt_lacks_is_named(tmp_path: Path) -> None:
    file = write_graph(tmp_path / "foo.onnx", "Foo", "ours", with_depth=True)
    out = tmp_path / PLANS
    with pytest.raises(
        ExportError, match=r"cannot read the node only \(Foo\): .*; export"
    ) as caught:
        build(file, out)
    assert "\n" not in str(caught.value)
    assert "TensorRT said" in caught.value.__notes__[0]
    assert not out.exists()


@builds
def test_failed_build_leaves_what_was_there(tmp_path: Path) -> None:
    file = write_graph(tmp_path / "foo.onnx", "Foo", "ours", with_depth=True)
    out = tmp_path / PLANS
    out.mkdir()
    (out / "rtx-sm89.plan").write_bytes(b"the old one")
    with pytest.raises(ExportError):
        build(file, out)
    assert [one.name for one in out.iterdir()] == ["rtx-sm89.plan"]
    assert (out / "rtx-sm89.plan").read_bytes() == b"the old one"


def test_crash_of_the_builder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    (tmp_path / "crashing_tensorrt.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ExportError, match="crashed with SIGSEGV; the last thing it logged was"):
        build_in_child(
            request(tmp_path / "x", tmp_path / "y", "crashing_tensorrt"), RTX.title, tmp_path
        )


@builds
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_an_os_error(tmp_path: Path) -> None:
    file = write_graph(tmp_path / "tanh.onnx", "Tanh")
    with pytest.raises(OSError) as caught:
        build_in_child(request(file, Path("/dev/full")), RTX.title, tmp_path)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.slow
@builds
def test_interrupted_build_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    process, child = start_stopped_build(tiny_bundle, tmp_path / PLANS)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert not (tmp_path / PLANS).exists()
    assert not Path(f"/proc/{child}").exists()


@builds
@pytest.mark.slow
def test_builder_ends_with_its_parent(tiny_bundle: Path, tmp_path: Path) -> None:
    process, child = start_stopped_build(tiny_bundle, tmp_path / PLANS)
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: is_gone(child))


def start_stopped_build(bundle: Path, out: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A process that builds, and the id of its builder, halted so that it can't end by itself."""
    code = (
        "from pathlib import Path\n"
        "from export.tensorrt.builder import GraphFacts, build_plans\n"
        "from export.tensorrt.options import TrtOptions\n"
        "options = TrtOptions(flavour='rtx', compute_capabilities=('8.9',))\n"
        f"facts = GraphFacts({MAX_DEPTH}, 3, 512, 'fp32')\n"
        f"graph, out = Path({str(bundle / 'model.onnx')!r}), Path({str(out)!r})\n"
        "build_plans(graph, out, options, facts)"
    )
    process = start_process([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    wait_until(lambda: any(out.glob(".building-*/rtx-sm89.plan")))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGSTOP)
    return process, int(children[0])


def is_gone(process: int) -> bool:
    """Ended, or a zombie that nobody has asked about yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@builds
@pytest.mark.skipif(describe_gpu() is not None, reason="says what happens without a GPU")
def test_refit_without_a_gpu_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"refit: .* on a GPU, and CUDA shows none here"):
        build(tiny_bundle / "model.onnx", tmp_path / PLANS, refit=True)


def test_message_loses_codes_and_source_files() -> None:
    # Source: TensorRT-RTX 1.7.1.116, building the SmolLM2 graph for compute capability 7.5.
    said = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: "
        "check_turing_op_compatibility] Cannot compile operation 'layers.0.node_matmul' for Turing "
        "(SM75): FP32 GEMM is not supported. In compileGraph at "
        "/_src/optimizer/myelin/codeGenerator.cpp:2012)"
    )
    sentence = (
        "Cannot compile operation 'layers.0.node_matmul' for Turing (SM75): FP32 GEMM is not "
        "supported"
    )
    assert clean(said) == sentence
    noise = "[checkMacros.cpp] (cudaError 35: CUDA driver version is insufficient for CUDA runtime)"
    line = str(describe_builder_error("T", [said, noise], ""))
    assert line.startswith(f"T cannot build the plan: {sentence}; compute capability 7.5 needs")


def test_builder_that_gives_no_reason_still_says_what_to_do() -> None:
    line = str(describe_builder_error("T", [], "the node n"))
    assert line.startswith(
        "T cannot build the plan at the node n: TensorRT gave no reason; --format"
    )


def test_killed_builder_points_at_memory() -> None:
    line = str(describe_crash("T", -signal.SIGKILL, "the phase 'Optimizing graph'"))
    assert "SIGKILL" in line
    assert "the phase 'Optimizing graph'" in line
    assert "out of memory" in line
