"""The Triton model repository, read with Triton's published schema."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from cli.app import app
from export.bundle import ExportReport
from export.errors import ExportError
from export.options import ExportOptions, TrtOptions
from export.tensorrt.builder import GraphFacts, build_plans
from export.triton.config import write_triton
from runtime.backends.trt_flavours import RTX, TENSORRT, Installed
from runtime.bundle.plans import PlanSpec
from runtime.bundle.reader import open_bundle, write_manifest
from tests.support.fake_cuda import FakeBuilder, stand_in_for_builder

CENTRE = Installed(TENSORRT, "tensorrt", "10.14.1", "10.14.1", "13")
GEFORCE = Installed(RTX, "tensorrt_rtx_bindings", "1.7.1.116", "1.7.1.116", "13")
PLAN = "plans/trt-sm90.plan"


def parse(repository: Path, name: str = "ouroboros") -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text = (repository / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_repository_is_what_triton_expects(tiny_bundle: Path, tmp_path: Path) -> None:
    from tritonclient.grpc import model_config_pb2 as schema

    report = write_triton(tiny_bundle, tmp_path / "models", device="cpu", instances=2)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        f"models/ouroboros/{name}"
        for name in ("1/model.onnx", "1/model.onnx.data", "ATTRIBUTION", "LICENSE", "config.pbtxt")
    ]
    assert report.bytes == sum((tmp_path / name).stat().st_size for name in files)
    for name in ("model.onnx", "model.onnx.data"):
        copied = (tmp_path / "models" / "ouroboros" / "1" / name).read_bytes()
        wanted = open_bundle(tiny_bundle).manifest.files[name].sha256
        assert hashlib.sha256(copied).hexdigest() == wanted

    config = parse(tmp_path / "models")
    assert (config.name, config.backend, config.max_batch_size) == ("ouroboros", "onnxruntime", 0)
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, schema.ModelInstanceGroup.KIND_CPU)
    assert not config.HasField("optimization")
    assert config.parameters["ouroboros.depth_max"].string_value == "5"


def test_instances_run_where_triton_can_run_them(tiny_bundle: Path, tmp_path: Path) -> None:
    """On a machine without a GPU a group of KIND_GPU would not load."""
    from tritonclient.grpc import model_config_pb2 as schema

    write_triton(tiny_bundle, tmp_path / "models")
    (group,) = parse(tmp_path / "models").instance_group
    assert (group.count, group.kind) == (1, schema.ModelInstanceGroup.KIND_AUTO)


def test_every_tensor_is_described_as_the_session_has_it(tiny_bundle: Path, tmp_path: Path) -> None:
    import onnxruntime
    from tritonclient.grpc import model_config_pb2 as schema

    write_triton(tiny_bundle, tmp_path / "models")
    config = parse(tmp_path / "models")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "models" / "ouroboros" / "1" / "model.onnx"),
        providers=["CPUExecutionProvider"],
    )
    types = {"tensor(float)": schema.TYPE_FP32, "tensor(int64)": schema.TYPE_INT64}
    for described, actual in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        listed = {
            io.name: (io.data_type, list(io.dims), io.HasField("reshape")) for io in described
        }
        # Triton: at least one dimension a tensor, -1 where it varies; an empty reshape is refused
        # where max_batch_size is 0.
        assert listed == {
            io.name: (
                types[io.type],
                [size if isinstance(size, int) else -1 for size in io.shape] or [1],
                False,
            )
            for io in actual
        }
        assert len(listed) == len(described)
    (depth,) = [io for io in config.input if io.name == "depth"]
    assert list(depth.dims) == [1]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A bundle with a plan, and the stand-in that built it."""

    path: Path
    spec: PlanSpec
    builder: FakeBuilder


@pytest.fixture
def planned(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """The tiny bundle with a plan; what is in it is TensorRT's business."""
    path = tmp_path / "planned"
    shutil.copytree(tiny_bundle, path)
    builder = stand_in_for_builder(monkeypatch, CENTRE)
    facts = GraphFacts(max_depth=5, default_depth=3, max_positions=512, precision="fp32")
    (spec,), _ = build_plans(path / "model.onnx", path / "plans", TrtOptions(), facts)
    list_plan(path, spec)
    return Planned(path, spec, builder)


def list_plan(bundle: Path, spec: PlanSpec) -> None:
    """Writes the manifest again, with this plan."""
    skipped = ("format_version", "files", "plans")
    manifest = open_bundle(bundle).manifest.to_json()
    write_manifest(bundle, **{k: v for k, v in manifest.items() if k not in skipped}, plans=[spec])


def test_plan_is_served_by_tensorrt(planned: Planned, tmp_path: Path) -> None:
    out = tmp_path / "models"
    write_triton(planned.path, out, backend="tensorrt", name="ouro-trt", plan=PLAN)
    model = out / "ouro-trt"
    assert (model / "1" / "model.plan").read_bytes() == FakeBuilder.PLAN
    assert [p.name for p in (model / "1").iterdir()] == ["model.plan"]
    config = parse(out, "ouro-trt")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 0)
    assert config.parameters["ouroboros.tensorrt"].string_value == "10.14.1"
    # Triton compares each input's dimensions with the plan's: they are what the builder was given.
    assert {io.name: list(io.dims) for io in config.input} == planned.builder.shapes
    assert planned.builder.shapes["depth"] == [1]
    assert [io.name for io in config.input if io.is_shape_tensor] == ["depth"]


def test_instances_may_use_every_profile_of_the_plan(planned: Planned, tmp_path: Path) -> None:
    def listed(**options: Any) -> list[str]:
        write_triton(planned.path, tmp_path / "models", backend="tensorrt", plan=PLAN, **options)
        return list(parse(tmp_path / "models").instance_group[0].profile)

    assert [profile.name for profile in planned.spec.profiles] == ["decode", "prefill"]
    assert listed() == ["0", "1"]
    assert listed(profiles=(1,)) == ["1"]
    for wrong in ((2,), ()):
        with pytest.raises(ExportError, match=r"are not of .*; allowed: 0 \(decode\), 1 \(prefill"):
            listed(profiles=wrong)


def test_plan_that_triton_cannot_serve_is_refused(planned: Planned, tmp_path: Path) -> None:
    list_plan(planned.path, dataclasses.replace(planned.spec, flavour="tensorrt_rtx"))
    words = "Triton loads plans of TensorRT, not of TensorRT for RTX"
    with pytest.raises(ExportError, match=f"{PLAN}.* {words}"):
        write_triton(planned.path, tmp_path / "models", backend="tensorrt", plan=PLAN)
    assert not (tmp_path / "models").exists()


def test_file_that_is_no_plan_is_refused(planned: Planned, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"holds no model\.onnx; it holds {PLAN}"):
        write_triton(planned.path, tmp_path / "models", backend="tensorrt", plan="model.onnx")


@pytest.mark.slow
def test_bundle_with_a_plan_keeps_a_scalar_and_triton_gets_a_vector(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = stand_in_for_builder(monkeypatch, CENTRE)
    out, models = tmp_path / "bundle", tmp_path / "models"
    arguments = ["export", str(tiny_checkpoint), str(out), "--format", "trt", "--max-depth", "1"]
    result = CliRunner().invoke(app, [*arguments, "--triton", str(models)])
    assert result.exit_code == 0, result.output
    assert "MB for Triton, backend tensorrt\n" in result.stdout
    assert (models / "ouroboros" / "1" / "model.plan").read_bytes() == FakeBuilder.PLAN
    config = parse(models)
    (depth,) = [io for io in config.input if io.is_shape_tensor]
    assert (depth.name, list(depth.dims)) == ("depth", builder.shapes["depth"])
    manifest = open_bundle(out).manifest
    assert manifest.plans[0].profiles[0].values[0].max == (1,)
    assert next(o for o in manifest.graphs.onnx.inputs if o.name == "depth").shape == (1,)
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    (scalar,) = [value for value in graph.input if value.name == "depth"]
    assert [size.dim_value for size in scalar.type.tensor_type.shape.dim] == [1]


@pytest.mark.parametrize(
    ("format", "backend", "file"),
    [("onnx", "onnxruntime", "model.onnx"), ("trt", "tensorrt", "model.plan")],
)
def test_command_line_serves_what_was_exported(
    planned: Planned,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    backend: str,
    file: str,
) -> None:
    def export(checkpoint: Path, out: Path, options: ExportOptions, **_: Any) -> ExportReport:
        shutil.copytree(planned.path, out)
        return ExportReport(0.0, 0, 0, (), (planned.spec,) if options.format == "trt" else ())

    monkeypatch.setattr("export.bundle.export_bundle", export)
    models = tmp_path / "models"
    arguments = ["export", "checkpoint", str(tmp_path / "bundle"), "--format", format]
    result = CliRunner().invoke(app, [*arguments, "--triton", str(models)])
    assert result.exit_code == 0, result.output
    assert f"wrote {models / 'ouroboros'}: " in result.stdout
    assert f"MB for Triton, backend {backend}\n" in result.stdout
    assert parse(models).backend == backend
    assert (models / "ouroboros" / "1" / file).is_file()


def test_command_line_refuses_what_triton_cannot_serve_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_builder(monkeypatch, GEFORCE)
    arguments = ["export", "checkpoint", str(tmp_path / "bundle"), "--format", "trt"]
    result = CliRunner().invoke(app, [*arguments, "--triton", str(tmp_path / "models")])
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "error: a Triton model: Triton loads plans of TensorRT, not of "
    )
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "torch"}, "backend=torch is not Triton's; allowed: onnxruntime, tensorrt"),
        ({"device": "tpu"}, "device=tpu is not Triton's; allowed: auto, cpu, gpu"),
        ({"name": "../x"}, "the model name '../x' can't be a directory"),
        ({"instances": 0}, "instances=0 would serve nothing; allowed: 1 or more"),
        ({"backend": "tensorrt"}, "tensorrt backend needs the name of a plan"),
        ({"plan": "plans/a.plan"}, "onnxruntime backend serves no plan"),
        ({"profiles": (0,)}, r"profiles=\[0\] are a plan's; leave them out without a plan"),
        ({"backend": "tensorrt", "plan": "plans/a.plan"}, "holds no plans/a.plan; it holds no"),
        (
            {"backend": "tensorrt", "plan": "plans/a.plan", "device": "cpu"},
            "a TensorRT plan runs on no CPU",
        ),
    ],
)
def test_bad_options_are_refused(
    tiny_bundle: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        write_triton(tiny_bundle, tmp_path / "models", **options)
    assert list(tmp_path.iterdir()) == []
