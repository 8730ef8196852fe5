"""The Triton model repository, read with Triton's published schema."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError
from export.triton import write_triton
from runtime.bundle import open_bundle, write_manifest
from runtime.errors import BundleError


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


@pytest.fixture
def planned_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that lists a plan; what is in it is TensorRT's business."""
    path = tmp_path / "planned"
    shutil.copytree(tiny_bundle, path)
    (path / "engines").mkdir()
    (path / "engines" / "decode.plan").write_bytes(b"a plan")
    manifest = open_bundle(tiny_bundle).manifest
    skipped = ("format_version", "files", "sha256", "manifest_sha256")
    fields = {k: v for k, v in manifest.to_json().items() if k not in skipped}
    write_manifest(path, **fields)
    return path


def test_plan_is_served_by_tensorrt(planned_bundle: Path, tmp_path: Path) -> None:
    write_triton(
        planned_bundle,
        tmp_path / "models",
        backend="tensorrt",
        name="ouro-trt",
        plan="engines/decode.plan",
        profiles=(0, 1),
    )
    model = tmp_path / "models" / "ouro-trt"
    assert (model / "1" / "model.plan").read_bytes() == b"a plan"
    assert [p.name for p in (model / "1").iterdir()] == ["model.plan"]
    config = parse(tmp_path / "models", "ouro-trt")
    assert config.backend == "tensorrt"
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert [io.name for io in config.input if io.is_shape_tensor] == ["depth"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "torch"}, "backend torch is not Triton's; allowed: onnxruntime, tensorrt"),
        ({"device": "tpu"}, "device tpu is not Triton's; allowed: cpu, gpu"),
        ({"name": "../x"}, "the model name '../x' can't be a directory"),
        ({"instances": 0}, "instances=0 would serve nothing; allowed: 1 or more"),
        ({"backend": "tensorrt"}, "tensorrt backend needs the name of a plan"),
        ({"plan": "engines/a.plan"}, "onnxruntime backend serves no plan"),
        ({"backend": "tensorrt", "plan": "engines/a.plan"}, "holds no engines/a.plan; it holds no"),
        (
            {"backend": "tensorrt", "plan": "engines/a.plan", "device": "cpu"},
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


def test_the_bundle_is_not_overwritten(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with pytest.raises(ExportError, match="is the bundle itself"):
        write_triton(tmp_path / "bundle", tmp_path / "bundle")
    open_bundle(tmp_path / "bundle")


def test_damaged_bundle_leaves_the_old_repository(tiny_bundle: Path, tmp_path: Path) -> None:
    write_triton(tiny_bundle, tmp_path / "models")
    before = (tmp_path / "models" / "ouroboros" / "config.pbtxt").read_bytes()
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with (tmp_path / "bundle" / "model.onnx.data").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    with pytest.raises(BundleError, match="is damaged or was changed"):
        write_triton(tmp_path / "bundle", tmp_path / "models", name="other")
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["ouroboros"]
    assert (tmp_path / "models" / "ouroboros" / "config.pbtxt").read_bytes() == before
