from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import export_bundle
from export.errors import ExportError
from export.tensorrt.builder import GraphFacts, build_plans
from export.tensorrt.messages import clean, describe_builder_error, describe_crash
from export.tensorrt.options import TrtOptions, check_options, choose_capabilities, make_profiles
from export.tensorrt.process import build_in_child
from runtime import BundleError, EngineError
from runtime.backends.gpu import Gpu, describe_gpu
from runtime.backends.machine import Machine, check_plan_fits
from runtime.backends.trt import choose_profile, open_plan
from runtime.backends.trt_flavours import RTX, TENSORRT, Installed
from runtime.bundle.contract import TensorSpec
from runtime.bundle.plans import PlanSpec, ProfileSpec, RangeSpec, check_plan_graph
from runtime.bundle.reader import hash_file, open_bundle, read_manifest
from runtime.parity.cases import load_cases
from tests.support.fake_cuda import stand_in_for_builder, stand_in_for_tensorrt
from tests.support.paths import ROOT
from tests.support.processes import start_process
from tests.support.tiny import MAX_DEPTH

FACTS = GraphFacts(max_depth=MAX_DEPTH, default_depth=3, max_positions=512, precision="fp32")
GPU = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30, "13.0")
HOPPER = Gpu("NVIDIA H100", "9.0", 80 << 30, "13.0")
HERE = Installed(RTX, "tensorrt_rtx_bindings", "1.7.1.116", "1.7.1.116", "13")
CENTRE = Installed(TENSORRT, "tensorrt", "10.14.1", "10.14.1", "13")
PLANS = "plans"

builds = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="TensorRT for RTX has wheels for Linux on x86-64 only",
)


@pytest.fixture(scope="module")
def plan(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PlanSpec, Path]:
    """The tiny bundle's plan for compute capability 8.9, and the folder above its own."""
    folder = tmp_path_factory.mktemp("plans")
    options = TrtOptions(flavour="rtx", compute_capabilities=("8.9",), max_batch=3, max_seq=100)
    (spec,) = build_plans(tiny_bundle / "model.onnx", folder / PLANS, options, FACTS)
    return spec, folder


def build(file: Path, out: Path, **options: Any) -> list[PlanSpec]:
    chosen: dict[str, Any] = {"flavour": "rtx", "compute_capabilities": ("8.9",), **options}
    return build_plans(file, out, TrtOptions(**chosen), FACTS)


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


@builds
def test_plan_is_described_as_built(plan: tuple[PlanSpec, Path], tiny_bundle: Path) -> None:
    spec, folder = plan
    assert (folder / spec.file).read_bytes()[:8].strip(b"\0")
    assert [file.name for file in (folder / PLANS).iterdir()] == ["rtx-sm89.plan"]
    assert spec.file == "plans/rtx-sm89.plan"
    assert (spec.flavour, spec.version, spec.cuda) == ("tensorrt_rtx", HERE.version, "13")
    assert spec.compute_capabilities == ("8.9",)
    assert not spec.refittable
    assert spec.max_new_tokens >= spec.max_logits > 0
    check_plan_fits(spec, Machine(GPU, (HERE,)))


def test_tensorrt_is_given_a_copy_whose_depth_is_a_vector(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    before = {file.name: hash_file(file) for file in tiny_bundle.iterdir()}
    builder = stand_in_for_builder(monkeypatch, CENTRE)
    (spec,) = build_plans(tiny_bundle / "model.onnx", tmp_path / PLANS, TrtOptions(), FACTS)

    graph = read_manifest(tiny_bundle).graphs.onnx
    assert builder.shapes == {
        one.name: [size if isinstance(size, int) else -1 for size in one.shape] or [1]
        for one in graph.inputs
    }
    assert spec.max_new_tokens >= spec.max_logits > 0
    assert [file.name for file in (tmp_path / PLANS).iterdir()] == ["trt-sm90.plan"]
    assert {file.name: hash_file(file) for file in tiny_bundle.iterdir()} == before
    check_plan_graph(spec, {name: before[name] for name in (graph.file, *graph.data)})

    session = onnxruntime.InferenceSession(
        builder.graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    case = next(c for c in load_cases(tiny_bundle / "cases.safetensors") if c.depth == 4)
    (found,) = session.run(["logits"], {**case.inputs, "depth": np.array([4])})
    np.testing.assert_allclose(found, case.outputs["logits"], rtol=1e-3, atol=1e-4)


@builds
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_exported_bundle_holds_a_plan_that_takes_a_vector(
    tiny_checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    options = TrtOptions(flavour="rtx", compute_capabilities=("8.9",))
    report = export_bundle(
        tiny_checkpoint,
        tmp_path / "out",
        max_depth=2,
        precision=precision,
        format="trt",
        trt=options,
    )
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.plans == report.plans
    (spec,) = manifest.plans
    assert spec.max_new_tokens >= spec.max_logits > 0
    assert [profile.values[0].max for profile in spec.profiles] == [(2,), (2,)]
    assert next(one for one in manifest.graphs.onnx.inputs if one.name == "depth").shape == (1,)
    assert [file.name for file in (tmp_path / "out" / PLANS).iterdir()] == ["rtx-sm89.plan"]


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
    with pytest.raises(ExportError, match=r"--timing-cache: TensorRT for RTX times no kernels"):
        build(tmp_path / "x.onnx", tmp_path / PLANS, timing_cache=tmp_path / "cache")


def test_graph_without_a_depth_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_builder(monkeypatch, CENTRE)
    file = write_graph(tmp_path / "tanh.onnx", "Tanh")
    with pytest.raises(ExportError, match="the graph has no input input_ids"):
        build_plans(file, tmp_path / PLANS, TrtOptions(), FACTS)
    assert not (tmp_path / PLANS).exists()


@builds
def test_plan_names_the_graph_it_was_built_from(
    plan: tuple[PlanSpec, Path], tiny_bundle: Path
) -> None:
    graph, files = read_manifest(tiny_bundle).graphs.onnx, read_manifest(tiny_bundle).files
    hashes = {name: files[name].sha256 for name in (graph.file, *graph.data)}
    check_plan_graph(plan[0], hashes)
    hashes[graph.data[0]] = "f" * 64
    with pytest.raises(BundleError, match="different checkpoints"):
        check_plan_graph(plan[0], hashes)


@builds
def test_plan_entry_is_plain_json(plan: tuple[PlanSpec, Path]) -> None:
    entry = dataclasses.asdict(plan[0])
    again = json.loads(json.dumps(entry))
    assert again["profiles"][0]["values"] == [
        {"name": "depth", "min": [1], "opt": [3], "max": [MAX_DEPTH]}
    ]
    assert {one["name"]: one["max"] for one in again["profiles"][1]["shapes"]}["input_ids"] == [
        3,
        128,
    ]


@builds
def test_recorded_cases_find_a_profile(plan: tuple[PlanSpec, Path], tiny_bundle: Path) -> None:
    # Every recorded call of the bundle must be one that its plan can serve.
    names = [profile.name for profile in plan[0].profiles]
    kinds = {
        case.kind: names[choose_profile(plan[0].profiles, case.inputs)]
        for case in load_cases(tiny_bundle / "cases.safetensors")
        if case.kind in ("prefill", "padded")
    }
    assert kinds == {"prefill": "prefill", "padded": "prefill"}


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flavour": "cuda"}, "--trt cuda is not known; allowed: auto, trt, rtx"),
        ({"compute_capabilities": ("sm89",)}, "--compute-capability sm89 is not one such as 8.9"),
        ({"max_batch": 0}, "--max-batch 0 is outside 1..1024"),
        ({"max_seq": 513}, "--max-seq 513 is outside 28..512"),
        ({"max_seq": 27}, "--max-seq 27 is outside 28..512: the recorded cases that `ouro check`"),
        ({"workspace_mb": 0}, "workspace of 0 MiB"),
        ({"timing_cache": Path("tests")}, "--timing-cache tests is a directory, or its"),
        ({"timing_cache": Path("no/cache")}, "--timing-cache no/cache is a directory, or its"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=words.replace(".", r"\.")):
        check_options(TrtOptions(**options), 512)


def test_a_prompt_that_comes_whole_needs_the_room_of_the_one_that_is_replayed() -> None:
    assert check_options(TrtOptions(max_seq=64), 512) == 64
    with pytest.raises(ExportError, match=r"--max-seq 64 is outside 69\.\.512"):
        check_options(TrtOptions(max_seq=64), 512, whole_prompt=True)
    assert check_options(TrtOptions(max_seq=69), 512, whole_prompt=True) == 69


def test_max_seq_defaults_to_what_the_model_has() -> None:
    assert check_options(TrtOptions(), 20) == 20
    assert check_options(TrtOptions(), 512) == 512
    assert check_options(TrtOptions(), 32768) == 2048


def test_capabilities_follow_flavour_and_gpu() -> None:
    asked = TrtOptions(compute_capabilities=("8.6", "12.0", "8.6"))
    assert choose_capabilities(asked, RTX, GPU) == ("8.6", "12.0")
    assert choose_capabilities(TrtOptions(), RTX, GPU) == ("8.9",)
    assert choose_capabilities(TrtOptions(), RTX, None) == ("8.6", "8.9", "12.0")
    assert choose_capabilities(TrtOptions(), TENSORRT, HOPPER) == ("9.0",)
    with pytest.raises(ExportError, match=r"builds on the GPU that will run .* --trt rtx"):
        choose_capabilities(TrtOptions(), TENSORRT, None)
    with pytest.raises(ExportError, match=r"8\.6,12\.0: TensorRT builds only .* H100 with 9\.0"):
        choose_capabilities(asked, TENSORRT, HOPPER)


@builds
@pytest.mark.skipif(describe_gpu() is not None, reason="says what happens without a GPU")
def test_refit_without_a_gpu_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--refit: .* on a GPU, and CUDA shows none here"):
        build(tiny_bundle / "model.onnx", tmp_path / PLANS, refit=True)


def test_profiles_serve_decoding_and_prefill(tiny_bundle: Path) -> None:
    inputs = read_manifest(tiny_bundle).graphs.onnx.inputs
    options = TrtOptions(max_batch=8, opt_past=64, opt_new=32)
    decode, prefill = make_profiles(inputs, options, 200, MAX_DEPTH, 3)
    ranges = {one.name: (one.min, one.opt, one.max) for one in decode.shapes}
    # 200 tokens take a cache of 256 slots; the mask spans the cache and the new tokens.
    assert ranges["input_ids"] == ((1, 1), (1, 1), (8, 1))
    assert ranges["attention_mask"] == ((1, 1), (1, 65), (8, 257))
    assert ranges["past_key_values.0.key"] == ((1, 2, 0, 16), (1, 2, 64, 16), (8, 2, 256, 16))
    assert ranges["past_pool_sum"] == ((1, 1, 64), (1, 3, 64), (8, MAX_DEPTH, 64))
    assert ranges["row_depth"] == ((1,), (1,), (8,))
    assert "depth" not in ranges
    ranges = {one.name: (one.min, one.opt, one.max) for one in prefill.shapes}
    assert ranges["input_ids"] == ((1, 1), (1, 32), (8, 256))
    assert ranges["logit_index"] == ((1, 1), (1, 1), (8, 128))
    assert ranges["attention_mask"][2] == (8, 512)


def test_prefill_is_in_chunks_unless_the_prompt_must_come_whole(tiny_bundle: Path) -> None:
    inputs = read_manifest(tiny_bundle).graphs.onnx.inputs
    for whole, most, logits in ((False, 512, 128), (True, 2048, 2048)):
        prefill = make_profiles(inputs, TrtOptions(), 2048, MAX_DEPTH, 3, whole)[1]
        ranges = {one.name: one.max for one in prefill.shapes}
        assert ranges["input_ids"] == (4, most)
        assert ranges["logit_index"] == (4, logits)


def test_dimension_that_no_profile_knows_is_named() -> None:
    inputs = [TensorSpec("image", "float32", ("batch", "height"))]
    with pytest.raises(ExportError, match="image has the dimension 'height'"):
        make_profiles(inputs, TrtOptions(), 64, 4, 2)


@builds
def test_changed_plan_never_reaches_tensorrt(
    plan: tuple[PlanSpec, Path], tiny_bundle: Path
) -> None:
    spec, folder = plan
    graph = read_manifest(tiny_bundle).graphs.onnx
    with pytest.raises(BundleError, match="it was not loaded"):
        open_plan(folder / spec.file, spec, graph, "0" * 64, Machine(GPU, (HERE,)))


@builds
@pytest.mark.skipif(describe_gpu() is not None, reason="says what happens without a GPU")
def test_right_plan_without_a_driver_is_one_line(
    plan: tuple[PlanSpec, Path], tiny_bundle: Path
) -> None:
    import hashlib

    spec, folder = plan
    graph, file = read_manifest(tiny_bundle).graphs.onnx, folder / spec.file
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(EngineError, match="CUDA: cudaStreamCreate failed with cudaError"):
        open_plan(file, spec, graph, digest, Machine(GPU, (HERE,)))


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
    line = describe_builder_error("T", [said, noise], "")
    assert line.startswith(f"T cannot build the plan: {sentence}; compute capability 7.5 needs")


def test_builder_that_gives_no_reason_still_says_what_to_do() -> None:
    line = describe_builder_error("T", [], "the node n")
    assert line.startswith(
        "T cannot build the plan at the node n: TensorRT gave no reason; --format"
    )


def test_killed_builder_points_at_memory() -> None:
    line = describe_crash("T", -signal.SIGKILL, "the phase 'Optimizing graph'")
    assert "SIGKILL" in line
    assert "the phase 'Optimizing graph'" in line
    assert "out of memory" in line
