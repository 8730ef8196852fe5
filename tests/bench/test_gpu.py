"""The GPU benchmark on the CPU: it must not be found broken only on a rented GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import gpu
from bench.gpu_report import SpeedRow, describe_device, result_name, write_part
from bench.measure import time_torch
from cli.errors import CommandError
from export.errors import ExportError
from ouroboros import load_checkpoint
from runtime.errors import EngineError
from runtime.measure.speed import DecodeTiming

pytestmark = pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")

SMALL = ["--backends", "cpu", "--torch-device", "cpu", "--depths", "1", "2", "--batches", "2"]
SMALL += ["--contexts", "8", "--rounds", "1", "--tokens", "3", "--precisions", "fp32"]


@pytest.mark.slow
def test_every_row_is_measured_and_written(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = ["--work", str(tmp_path / "work"), "--json", "--results", str(tmp_path / "results")]
    gpu.main([str(tiny_checkpoint), *SMALL, *folders])
    (file,) = (tmp_path / "results").iterdir()
    figures = json.loads(file.read_text())
    assert set(figures) == {"parity", "speed", "measured"}
    assert figures["measured"]["parity"]["device"] == describe_device()
    assert figures["measured"]["speed"]["rounds"] == 1
    (checked,) = figures["parity"]
    assert (checked["precision"], checked["verdict"]) == ("fp32", "PASS")
    assert checked["worst_relative_l2"] < 1e-5
    subjects = [(row["precision"], row["subject"], row["depth"]) for row in figures["speed"]]
    assert subjects == [
        (precision, name, depth)
        for depth in (1, 2)
        for precision, name in (("fp32", "cpu"), ("fp32", "pytorch"), ("fp16", "pytorch"))
    ]
    assert [row["host_bytes"] for row in figures["speed"]] == [0, None, None] * 2
    for row in figures["speed"]:
        assert row["tokens_per_s"] == pytest.approx(2000 / row["decode_ms"], rel=0.01)
        assert row["prefill_tokens_per_s"] > 0
        assert 0 <= row["engine_overhead"] < 1
    printed = capsys.readouterr().out
    assert "worst relative L2" in printed
    assert "fp16  pytorch" in printed
    assert "onnxruntime 1." in printed


def test_what_cannot_run_is_a_row_with_its_reason(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--work", str(tmp_path), "--depths", "99"]
    gpu.main([str(tiny_checkpoint), *SMALL, *folder])
    printed = capsys.readouterr().out
    assert "fp32  cpu      ERROR      max_depth=99 is outside 1..8" in printed


def test_plan_that_was_refused_is_a_row_with_its_reason(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(checkpoint: Path, out: Path, *, format: str, **options: Any) -> None:
        if format == "trt":
            raise ExportError("9.0 is not one of TensorRT for RTX")
        shutil.copytree(tiny_bundle, out)

    monkeypatch.setattr("export.export_bundle", export, raising=False)
    shapes = [gpu.Shape(depth=1, batch=1, context=8)]
    backends, said = ["cpu", "trt"], list[str]()
    bundles = gpu.Bundles(tmp_path, tmp_path / "work", True, False, said.append)
    parity, speeds = gpu.bench_gpu(bundles, ["fp32"], backends, shapes, 1, 3, None)
    assert [(row.backend, row.verdict, row.reason) for row in parity] == [
        ("cpu", "PASS", ""),
        ("trt", "ERROR", "9.0 is not one of TensorRT for RTX"),
    ]
    assert [row.subject for row in speeds] == ["cpu"]


@pytest.mark.slow
def test_parts_run_one_after_the_other_on_one_export(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    asked = [str(tiny_checkpoint), *SMALL, *folders, "--torch-device", "none"]
    gpu.main([*asked, "--export-only"])
    manifest = tmp_path / "work" / "fp32" / "manifest.json"
    made = manifest.stat().st_mtime_ns
    assert not (tmp_path / "work" / gpu.PARITY).exists()
    gpu.main([*asked, "--parity-only", "--reuse"])
    printed = capsys.readouterr().out
    assert "worst relative L2" in printed
    assert "ms/token" not in printed
    gpu.main([*asked, "--speed-only", "--json"])
    assert manifest.stat().st_mtime_ns == made
    (file,) = (tmp_path / "results").iterdir()
    figures = json.loads(file.read_text())
    assert [row["verdict"] for row in figures["parity"]] == ["PASS"]
    assert [(row["subject"], row["depth"]) for row in figures["speed"]] == [("cpu", 1), ("cpu", 2)]
    gpu.main([*asked, "--export-only", "--reuse", "--depths", "3"])  # not deep enough
    assert manifest.stat().st_mtime_ns != made


def test_parity_of_another_device_is_not_taken(tmp_path: Path) -> None:
    rows = [gpu.ParityRow("fp32", "cuda", "PASS", 1e-6, "")]
    how = {"checkpoint": "sha", "device": {"gpu": "one"}, "date": "2001-02-03"}
    write_part(tmp_path / gpu.PARITY, "parity", rows, how)
    today = how | {"date": "2001-02-04"}
    assert gpu.find_parity(tmp_path, today) == (rows, how)
    for other in (today | {"device": {"gpu": "another"}}, today | {"checkpoint": "another"}):
        assert gpu.find_parity(tmp_path, other) == ([], other)
    assert gpu.find_parity(tmp_path / "nothing", today) == ([], today)


def test_parity_outlives_a_timing_that_fails_and_other_parts_outlive_both(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / result_name(describe_device())
    old = {"device": {"gpu": "one"}, "parity": [], "speed": [1], "training": {"by": "hand"}}
    file.write_text(json.dumps(old | {"measured": {"speed": {"date": "2001-02-03"}}}))

    def fail(*given: object) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(gpu.Bundles, "make", lambda *given: (tiny_bundle, ""))
    monkeypatch.setattr(gpu, "time_shapes", fail)
    folders = ["--work", str(tmp_path / "work"), "--json", "--results", str(tmp_path)]
    asked = [str(tiny_checkpoint), *SMALL, "--torch-device", "none", *folders]
    with pytest.raises(RuntimeError, match="CUDA error"):
        gpu.main(asked)
    figures = json.loads(file.read_text())
    assert [row["verdict"] for row in figures["parity"]] == ["PASS"]
    measured = figures.pop("measured")
    assert measured["parity"]["device"] == describe_device()
    assert measured["speed"] == {"date": "2001-02-03"}
    assert figures | {"parity": []} == old
    file.write_text("{")
    with pytest.raises(CommandError, match="holds no figures that can be read; move it away"):
        gpu.main(asked)


def speed_row(precision: str, subject: str, decode_ms: float = 1.0) -> SpeedRow:
    return SpeedRow(precision, subject, 1, 1, 8, decode_ms, 1e3, 1e3, 0.0, None)


def test_what_cannot_be_timed_is_kept_until_it_is_timed(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise EngineError("no memory is left")

    monkeypatch.setattr(gpu.Bundles, "make", lambda *given: (tiny_bundle, ""))
    monkeypatch.setattr(gpu, "time_shapes", lambda *given: [speed_row("fp32", "cpu")])
    folders = ["--work", str(tmp_path / "work"), "--json", "--results", str(tmp_path)]
    asked = [str(tiny_checkpoint), *SMALL, "--torch-device", "none", *folders, "--speed-only"]
    file = tmp_path / result_name(describe_device())
    with monkeypatch.context() as broken:
        broken.setattr(gpu.Engine, "open", refuse)
        gpu.main(asked)
    figures = json.loads(file.read_text())
    (row,) = figures["untimed"]
    assert (row["precision"], row["backend"], row["reason"]) == ("fp32", "cpu", "no memory is left")
    assert figures["measured"]["untimed"]["device"] == describe_device()
    assert not {"parity", "speed"} & set(figures)
    gpu.main(asked)
    figures = json.loads(file.read_text())
    assert figures["untimed"] == []
    assert [row["subject"] for row in figures["speed"]] == ["cpu"]


def test_rows_that_were_not_asked_for_stay_where_they_are_of_the_same_model(
    tmp_path: Path,
) -> None:
    file = tmp_path / "figures.json"
    how = {"checkpoint": "sha", "device": {"gpu": "one"}, "date": "2001-02-03"}

    def write(rows: list[SpeedRow], asked: list[tuple[str, str]], **other: Any) -> dict[str, Any]:
        write_part(file, "speed", rows, how | other, asked)
        figures = json.loads(file.read_text())
        shown = {f"{r['precision']} {r['subject']}": r["decode_ms"] for r in figures["speed"]}
        return shown | {"date": figures["measured"]["speed"]["date"]}

    all_of_them = [speed_row(one, "cuda") for one in ("fp32", "fp16", "int4")]
    write([*all_of_them, speed_row("fp32", "pytorch")], [])
    found = write(
        [speed_row("int4", "cuda", 2.0), speed_row("fp32", "pytorch", 3.0)],
        [("int4", "cuda"), ("fp16", "cuda")],  # which could not be timed
        date="2001-02-04",
    )
    days = "2001-02-03, 2001-02-04"
    assert found == {"fp32 cuda": 1.0, "int4 cuda": 2.0, "fp32 pytorch": 3.0, "date": days}
    found = write([speed_row("int4", "cuda", 4.0)], [], date="2001-02-05", checkpoint="another")
    assert found == {"int4 cuda": 4.0, "date": "2001-02-05"}


def test_medians_are_over_all_turns() -> None:
    decoded = [DecodeTiming([0.1, 0.3], [0.1, 0.15], 2.0), DecodeTiming([0.2], [0.2], 4.0)]
    timings = [gpu.Timing(one, 7) for one in decoded]
    row = gpu.summarise("fp32", "cuda", gpu.Shape(1, 4, 16), timings)
    assert row.host_bytes == 7
    assert row.decode_ms == 200
    assert row.tokens_per_s == 20
    assert row.prefill_tokens_per_s == pytest.approx(4 * 16 / 3, rel=0.01)
    assert row.engine_overhead == 0


def test_pytorch_is_timed_at_half_precision(tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)[0].half()
    timing = time_torch(model, depth=2, batch=2, context=5, tokens=6)
    assert len(timing.token_s) == 4
    assert timing.prefill_s > 0


@pytest.mark.skipif(describe_device()["gpu"] is not None, reason="says what happens without")
def test_without_a_gpu_it_says_so(tiny_checkpoint: Path) -> None:
    with pytest.raises(SystemExit, match="CUDA shows no GPU here; run `ouro doctor`"):
        gpu.main([str(tiny_checkpoint)])
    with pytest.raises(SystemExit, match="nowhere is not there"):
        gpu.main(["nowhere"])


def test_result_file_is_named_after_the_gpu() -> None:
    device = {"gpu": {"name": "NVIDIA GeForce RTX 4090"}, "processor": "x"}
    assert result_name(device) == "nvidia-geforce-rtx-4090.json"
    assert result_name({"gpu": None, "processor": "A (R) 2.0"}) == "a-r-2-0.json"
