"""The exported graph: its tensors, its one Loop, its weights, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from typer.testing import CliRunner

from cli.app import app
from export import TrtOptions, export_bundle
from export.cases import record_cases
from export.errors import ExportError
from export.tensorrt.options import check_options
from ouroboros import load_checkpoint, save_checkpoint
from ouroboros.errors import DataError
from runtime.bundle.reader import open_bundle
from tests.support.tiny import MAX_DEPTH


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> onnx.GraphProto:
    return onnx.load(tiny_bundle / "model.onnx").graph


def shape(value: onnx.ValueInfoProto) -> list[Any]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_tensors_are_those_of_the_contract(graph: onnx.GraphProto) -> None:
    past = ["batch", 2, "past_sequence", 16]
    looped = ["batch", "slots", 2, "past_sequence", 16]
    expected = {
        "input_ids": ["batch", "sequence"],
        "position_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "past_sequence + sequence"],
        "depth": [1],
        "row_depth": ["batch"],
        "logit_index": ["batch", "logits"],
        **{f"past_key_values.{i}.{k}": past for i in range(4) for k in ("key", "value")},
        "past_key_values.recurrent.key": looped,
        "past_key_values.recurrent.value": looped,
        "past_pool_sum": ["batch", "slots", 64],
    }
    assert {value.name: shape(value) for value in graph.input} == expected
    new = ["batch", 2, "sequence", 16]
    outputs = {
        "logits": ["batch", "logits", 259],
        **{f"new_key_values.{i}.{k}": new for i in range(4) for k in ("key", "value")},
        "new_key_values.recurrent.key": ["batch", "depth", 2, "sequence", 16],
        "new_key_values.recurrent.value": ["batch", "depth", 2, "sequence", 16],
        "pool_sum": ["batch", "depth", "logits", 64],
    }
    assert {value.name: shape(value) for value in graph.output} == outputs


def test_one_loop_with_the_controller_in_its_body(graph: onnx.GraphProto) -> None:
    (loop,) = [node for node in graph.node if node.op_type == "Loop"]
    assert list(loop.input)[:2] == ["depth.scalar", ""]
    (body,) = [attribute.g for attribute in loop.attribute if attribute.name == "body"]
    names = {tensor.name for tensor in body.initializer}
    assert {"step.modulate.heads", "step.gate_weight", "step.step_norm"} <= names
    assert not any("past_key_values" in value.name for value in body.input)


def test_each_weight_is_stored_once(graph: onnx.GraphProto, tiny_bundle: Path) -> None:
    def tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
        inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        return [*graph.initializer, *(t for g in inner for t in tensors(g))]

    big = [t for t in tensors(graph) if onnx.numpy_helper.to_array(t).nbytes >= 1024]
    contents = [onnx.numpy_helper.to_array(t).tobytes() for t in big]
    assert len(set(contents)) == len(contents)
    total = sum(len(content) for content in contents)
    assert (tiny_bundle / "model.onnx.data").stat().st_size < 1.1 * total + 65536


def test_nothing_of_the_exporting_machine_is_in_the_graph(tiny_bundle: Path) -> None:
    raw = (tiny_bundle / "model.onnx").read_bytes()
    assert b".py" not in raw
    assert str(Path.cwd()).encode() not in raw


def test_bundle_opens_and_names_its_source(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    assert manifest.depth.max == 5
    assert manifest.depth.trained == (1, 2, 3, 4)
    assert {"LICENSE", "ATTRIBUTION", "tokenizer.json", "chat_template.jinja"} <= {*manifest.files}
    assert manifest.tokenizer.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_depth": 0}, r"max_depth=0 is outside 1\.\.8"),
        ({"max_depth": 9}, "the --max-depth of `ouro convert` sets it"),
        ({"precision": "int3"}, "precision=int3 .* allowed: fp32"),
        ({"format": "tf"}, "format=tf .* allowed: onnx, trt"),
        ({"block_size": 32}, "^block_size is for int8 and int4, not for fp32; leave it out$"),
        ({"symmetric": True}, "^symmetric is for int8"),
        ({"symmetric": False, "precision": "bf16"}, "^symmetric is for .*, not for bf16"),
        (
            {"accuracy_level": 1, "block_size": 64, "precision": "fp16"},
            "^block_size and accuracy_level are for int8 and int4, .* fp16; leave them out$",
        ),
        (
            {"trt": TrtOptions()},
            r"^trt=TrtOptions\(\.\.\.\) is for format trt, not for format onnx",
        ),
    ],
)
def test_bad_options_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        export_bundle(tiny_checkpoint, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--block-size", "32"], "block_size is for int8 and int4, not for fp32; leave it out"),
        (["--asymmetric"], "symmetric is for int8 and int4, not for fp32; leave it out"),
        (["--trt", "auto"], "--trt is for --format trt, not for --format onnx; leave it out"),
        (["--compute-capability", "8.9"], "--compute-capability is for --format trt, not"),
        (["--max-batch", "4"], "--max-batch is for --format trt, not for --format onnx"),
        (["--max-seq", "9", "--refit"], "--max-seq and --refit are for --format trt, not for"),
    ],
)
def test_option_without_effect_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "bundle"
    result = CliRunner().invoke(app, ["export", str(tiny_checkpoint), str(out), *arguments])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    assert result.stderr.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_options_of_plans_reach_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def export(checkpoint: Path, out: Path, chosen: Any, **options: Any) -> None:
        given.update(options)
        raise ExportError("far enough")

    monkeypatch.setattr("export.bundle.export_bundle", export)
    plain = ["export", "checkpoint", str(tmp_path / "bundle"), "--format", "trt"]
    CliRunner().invoke(app, plain)
    assert given["trt"] == TrtOptions()
    options = ["--trt", "rtx", "--compute-capability", "8.6, 8.9", "--max-batch", "2"]
    CliRunner().invoke(app, [*plain, *options, "--max-seq", "64", "--refit"])
    assert given["trt"] == TrtOptions("rtx", ("8.6", "8.9"), max_batch=2, max_seq=64, refit=True)
    CliRunner().invoke(app, [*plain, "--compute-capability", " "])
    with pytest.raises(ExportError, match=r"compute_capabilities=.* is not one such as"):
        check_options(given["trt"], 512)  # a blank is not taken for the default


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_model_that_gives_no_numbers_is_refused(tiny_checkpoint: Path, value: float) -> None:
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    model.config.alpha = value
    with torch.no_grad():
        model.lm_head.weight.view(-1)[-1] = value
    with pytest.raises(
        ExportError, match=r"gives NaN or infinity at depth 2 \(prefill\)"
    ) as caught:
        record_cases(model, tokenizer, [2])
    assert "\n" not in str(caught.value)


def test_full_disk_is_named_where_numpy_only_counts(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError("12288 requested and 9024 written")  # what ndarray.tofile says

    monkeypatch.setattr("export.bundle.compile_graph", lambda *_: (None, []))
    monkeypatch.setattr("export.bundle._write_graph", fail)
    with pytest.raises(ExportError, match="can't write the bundle: the disk is full; what was"):
        export_bundle(tiny_checkpoint, tmp_path / "out", max_depth=2)
    assert list(tmp_path.iterdir()) == []


def test_files_may_be_named_as_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = str(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        export_bundle(tiny_checkpoint, tmp_path / "out", precision="int8", calibration=text)


def test_it_is_said_that_a_chat_template_needs_jinja(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise ExportError("far enough")

    monkeypatch.setattr("export.bundle.compile_graph", stop)
    shutil.copytree(tiny_checkpoint, tmp_path / "dated")
    plain = (tiny_checkpoint / "chat_template.jinja").read_text()
    dated = plain + "{{ '!' if strftime_now('%m') == '13' }}"
    (tmp_path / "dated" / "chat_template.jinja").write_text(dated)
    for checkpoint, told in ((tiny_checkpoint, 0), (tmp_path / "dated", 1)):
        lines: list[str] = []
        with pytest.raises(ExportError, match="far enough"):
            export_bundle(checkpoint, tmp_path / "out", report=lines.append)
        assert sum("engines without Jinja can't render it" in line for line in lines) == told


@pytest.mark.slow
def test_a_checkpoint_that_is_replaced_meanwhile_is_not_half_of_a_bundle(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)

    def replace_it(line: str) -> None:
        if line.startswith("recording"):
            shutil.rmtree(checkpoint)
            shutil.copytree(tiny_checkpoint, checkpoint)

    with pytest.raises(ExportError, match="checkpoint was replaced while it was exported; export"):
        export_bundle(checkpoint, tmp_path / "out", max_depth=2, report=replace_it)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_export_through_the_command_line(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    result = CliRunner().invoke(
        app, ["export", str(tiny_checkpoint), str(out), "--max-depth", str(MAX_DEPTH)]
    )
    assert result.exit_code == 0, result.output
    assert f"wrote {out}: " in result.stdout
    assert result.stdout.endswith(f'next: ouro check {out}, then ouro run {out} "prompt"\n')
    written, expected = (open_bundle(path).manifest for path in (out, tiny_bundle))
    assert written.files == expected.files  # to the bit: nothing of an export is random
    assert written == expected
    for arguments in (["--max-depth", "99"], ["--precision", "int3"]):
        refused = CliRunner().invoke(app, ["export", str(tiny_checkpoint), str(out), *arguments])
        assert refused.exit_code == 1
        name = arguments[0].removeprefix("--").replace("-", "_")
        assert refused.stderr.startswith(f"error: {name}={arguments[1]} is ")
    assert open_bundle(out).manifest == written


def test_checkpoint_without_tokenizer_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    save_checkpoint(model, None, tmp_path / "mute")
    with pytest.raises(ExportError, match=r"no tokenizer\.json"):
        export_bundle(tmp_path / "mute", tmp_path / "out", max_depth=4)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("chat_template.jinja", "{% for %}", r"chat_template\.jinja: .* not valid"),
        ("generation_config.json", '{"eos_token_id": 259}', "eos_token_id 259 .* 0..258"),
    ],
)
def test_broken_text_files_are_refused_before_the_work(
    tiny_checkpoint: Path, tmp_path: Path, file: str, text: str, words: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    (broken / file).write_text(text)
    lines: list[str] = []
    with pytest.raises(ExportError, match=words):
        export_bundle(broken, tmp_path / "out", max_depth=2, report=lines.append)
    assert lines == [f"loading {broken}"]


def test_checkpoint_inside_the_destination_is_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "out" / "checkpoint")
    with pytest.raises(ExportError, match=r"out holds .*checkpoint, which it is made from"):
        export_bundle(tmp_path / "out" / "checkpoint", tmp_path / "out")
    assert (tmp_path / "out" / "checkpoint" / "config.json").is_file()


def test_destination_that_cannot_be_made_is_refused_first(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    lines: list[str] = []
    with pytest.raises(ExportError, match="file is a file"):
        export_bundle(tiny_checkpoint, tmp_path / "file" / "out", report=lines.append)
    assert lines == []
