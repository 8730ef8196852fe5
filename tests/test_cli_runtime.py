from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cli.bench import bench, parse_numbers
from cli.check import check
from cli.inspect import inspect
from cli.run import run
from ouroboros.errors import CheckpointError
from runtime import Engine, EngineError
from runtime.errors import BundleError

pytestmark = pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")


def ouro(*arguments: object) -> Result:
    app = typer.Typer()
    for command in (run, check, inspect, bench):
        app.command(command.__name__)(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_run_prints_the_generated_text(engine: Engine, tiny_bundle: Path) -> None:
    result = ouro("run", tiny_bundle, "Hello", "--depth", 2, "--max-new-tokens", 8)
    assert result.exit_code == 0
    assert result.stdout == engine.generate("Hello", depth=2, max_new_tokens=8).text + "\n"
    sampled = ["--temperature", 1, "--top-k", 9, "--top-p", 0.9, "--seed", 1, "--stop", "zzz"]
    assert ouro("run", tiny_bundle, "Hello", "--max-new-tokens", 4, *sampled).exit_code == 0


def test_run_says_once_that_a_depth_is_untrained(engine: Engine, tiny_bundle: Path) -> None:
    trained = engine.manifest.depth.trained
    depth = next((d for d in range(engine.manifest.depth.max, 0, -1) if d not in trained), None)
    if depth is None:
        pytest.skip("every depth was trained")
    result = ouro("run", tiny_bundle, "Hello", "--depth", depth, "--max-new-tokens", 2)
    assert result.stderr.count("warning: ") == 1
    assert "never trained" in result.stderr
    assert ".py" not in result.stderr


def test_run_errors_reach_the_command_line(tiny_bundle: Path, tmp_path: Path) -> None:
    assert isinstance(ouro("run", tiny_bundle, "x", "--depth", 99).exception, EngineError)
    assert isinstance(ouro("run", tiny_bundle, "").exception, EngineError)
    assert isinstance(ouro("run", tmp_path, "x").exception, BundleError)


def test_check_passes_and_writes_its_files(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = ["--json", tmp_path / "p.json", "--plot", tmp_path / "p.png"]
    result = ouro("check", tiny_bundle, *files)
    assert result.exit_code == 0, result.output
    assert "PASS" in result.stdout
    report = json.loads((tmp_path / "p.json").read_text())
    assert report["verdict"] == "PASS"
    assert report["depths"] == list(range(1, Engine.open(tiny_bundle).manifest.depth.max + 1))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len(ouro("check", tiny_bundle, "--all").stdout) > len(result.stdout)


def test_check_live_compares_with_the_checkpoint(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    result = ouro("check", tiny_bundle, "--live", tiny_checkpoint, "--seed", 5)
    assert result.exit_code == 0, result.output


def test_inspect_bundle_and_damage(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    result = ouro("inspect", tiny_bundle, "--tensors")
    assert result.exit_code == 0
    for words in ("model.onnx", "depth", "causal", "past_pool_sum", "ok"):
        assert words in result.stdout
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    (copy / "tokenizer.json").unlink()
    broken = ouro("inspect", copy)
    assert isinstance(broken.exception, BundleError)
    assert "damaged" in broken.stdout


def test_inspect_checkpoint_needs_no_torch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = ouro("inspect", tiny_checkpoint, "--tensors")
    assert result.exit_code == 0
    assert "model.safetensors" in result.stdout
    (tmp_path / "config.json").write_text("{")
    assert isinstance(ouro("inspect", tmp_path).exception, CheckpointError)
    (tmp_path / "config.json").write_text('{"model_type": "ouroboros"}')
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    assert "damaged" in str(ouro("inspect", tmp_path).exception)


def test_bench_prints_the_machine(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ["--depth", "1,2", "--context", "8", "--tokens", "4", "--repeats", "1"]
    result = ouro("bench", tiny_bundle, *options, "--json", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    assert "cores" in result.stdout
    assert len(json.loads((tmp_path / "b.json").read_text())["rows"]) == 2


def test_parse_numbers() -> None:
    assert parse_numbers("1,4, 8", "--depth") == [1, 4, 8]
    assert parse_numbers("1-4,2,9", "--depth") == [1, 2, 3, 4, 9]
    for bad in ("", "a", "0", "4-1", "1,,2", "1-99999999"):
        with pytest.raises(EngineError, match="--depth"):
            parse_numbers(bad, "--depth")
