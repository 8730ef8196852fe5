from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cli.bench import bench
from cli.check import check
from cli.errors import CommandError
from cli.evaluate import evaluate
from cli.inspect import inspect
from cli.run import run
from export.errors import ExportError
from ouroboros.errors import CheckpointError, ConfigError
from runtime import Engine, EngineError
from runtime.errors import BundleError
from runtime.measure.options import BenchOptions
from runtime.measure.speed import bench_engine
from tests.support.processes import start_ouro

pytestmark = pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")


def ouro(*arguments: object) -> Result:
    app = typer.Typer()
    for command in (run, check, inspect, bench, evaluate):
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


def test_run_chat_applies_the_template(engine: Engine, tiny_bundle: Path) -> None:
    result = ouro("run", tiny_bundle, "Hi", "--chat", "--depth", 2, "--max-new-tokens", 6)
    assert result.exit_code == 0
    answer = engine.generate("Hi", depth=2, max_new_tokens=6, chat=True).text
    assert result.stdout == answer + "\n"
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert answer == engine.generate(rendered, depth=2, max_new_tokens=6).text
    plain = ouro("run", tiny_bundle, "Hi", "--depth", 2, "--max-new-tokens", 6)
    assert plain.stdout != result.stdout


@pytest.mark.parametrize("chat", [[], ["--chat"]])
def test_run_refuses_bytes_that_are_no_text(tiny_bundle: Path, chat: list[str]) -> None:
    """A byte 0xff on the command line reaches Python as half a surrogate pair."""
    error = ouro("run", tiny_bundle, "a\udcff", *chat).exception
    assert isinstance(error, EngineError)
    assert "'\\udcff'" in str(error)


def test_check_refuses_outputs_before_it_measures(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for options, words in (
        (["--json", tmp_path / "no" / "p.json"], "its directory is not there"),
        (["--json", tmp_path], "is a directory"),
        (["--plot", tmp_path / "no" / "p.png"], "its directory is not there"),
        (["--plot", tmp_path / "p.foo"], "allowed endings are .*png"),
        (["--plot", tmp_path / "p"], "allowed endings are .*png"),
    ):
        # The bundle is not even there: what is wrong with the output comes first.
        error = ouro("check", tmp_path / "nowhere", *options).exception
        assert error is not None
        assert re.search(words, str(error)), error
    for command in ("bench", "check"):
        missing = tmp_path / "no" / "b.json"
        error = ouro(command, tmp_path / "nowhere", "--json", missing).exception
        assert "its directory is not there" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_check_prints_its_table_before_it_writes(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    result = ouro("check", tiny_bundle, "--json", tmp_path / "p.json")
    assert isinstance(result.exception, CommandError)
    assert "PASS" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_inspect_checkpoint_without_torch_says_what_it_left_out(tiny_checkpoint: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from cli.main import main; main()"
    )
    process = start_ouro("inspect", tiny_checkpoint, code=code)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert "torch is not installed: the configuration was not looked into" in stdout


@pytest.fixture
def copied_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copied"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_inspect_checkpoint_finds_broken_values(
    copied_checkpoint: Path, dtype: str, value: str
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = copied_checkpoint / "model.safetensors"
    tensors = {name: one.to(getattr(torch, dtype)) for name, one in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert ouro("inspect", copied_checkpoint).exit_code == 0
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = float(value)
    save_file(tensors, file, metadata={"format": "pt"})
    result = ouro("inspect", copied_checkpoint)
    assert isinstance(result.exception, CheckpointError)
    assert f"is damaged: {name} holds NaN or infinity" in str(result.exception)
    assert "damaged" in result.stdout


def test_inspect_shows_names_as_they_are_written(copied_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = copied_checkpoint / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "[/b]\x1b[31m": tensors["norm.weight"]}, file, {"format": "pt"})
    result = ouro("inspect", copied_checkpoint, "--tensors")
    assert isinstance(result.exception, CheckpointError)
    assert "[/b]\\x1b[31m" in result.stdout
    (tmp_path / "empty").mkdir()
    assert "is neither a bundle nor a checkpoint" in str(
        ouro("inspect", tmp_path / "empty").exception
    )


def test_inspect_checkpoint_refuses_unknown_keys_and_tensors(copied_checkpoint: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = copied_checkpoint / "model.safetensors"
    tensors = load_file(file)
    name = "recurrent.norm.weight"
    for changed, words in (
        ({**tensors, "surprise": tensors[name]}, "1 unexpected weights, surprise first"),
        ({**tensors, name: tensors[name][:2]}, rf"1 mismatched weights, {name}: \[2.* instead of"),
        ({n: t for n, t in tensors.items() if n != name}, f"1 missing weights, {name} first"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        error = ouro("inspect", copied_checkpoint).exception
        assert isinstance(error, CheckpointError)
        assert re.search(words, str(error))
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((copied_checkpoint / "config.json").read_text())
    (copied_checkpoint / "config.json").write_text(json.dumps({**config, "surprise": 1}))
    error = ouro("inspect", copied_checkpoint).exception
    assert isinstance(error, ConfigError)
    assert "surprise" in str(error)


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


def test_options_are_refused_before_long_work(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("a bundle or a checkpoint was loaded first")

    for name in ("export.live.record_live", "runtime.Engine.open", "cli.evaluate.open_model"):
        monkeypatch.setattr(name, read)
    for words, said in (
        (("check", "--backend", "gpu", "--live", tmp_path), "backend='gpu' is not known"),
        (("check", "--backend", "trt", "--live", tmp_path), "backend 'trt' needs a TensorRT plan"),
        (("check", "--threads", 0, "--live", tmp_path), "threads=0 is not a number of threads"),
        (("run", "Hello", "--depth", 99), "depth=99 is outside"),
        (("run", "Hello", "--halt-threshold", 0.5), "no effect at a fixed depth"),
        (("run", "Hello", "--top-k", -3), "top_k=-3 is not allowed"),
        (("bench", "--depth", "x"), "--depth x is not a list"),
        (("bench", "--context", "0"), "--context 0 is not a list"),
        (("evaluate", "--text", tmp_path, "--depth", "x"), "--depth x is not a list"),
    ):
        result = ouro(words[0], tiny_bundle, *words[1:])
        assert said in str(result.exception)


def test_check_live_refuses_a_seed_below_zero(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    result = ouro("check", tiny_bundle, "--live", tiny_checkpoint, "--seed", -1)
    assert isinstance(result.exception, ExportError)
    assert str(result.exception) == "seed=-1 is not allowed; it must be 0 or more"


def test_check_live_says_that_the_checkpoint_is_another(
    tiny_bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "is not the checkpoint that"
    assert said not in ouro("check", tiny_bundle, "--live", tiny_checkpoint).output
    monkeypatch.setattr("export.live.checkpoint_sha256", lambda path: "f" * 64)
    result = ouro("check", tiny_bundle, "--live", tiny_checkpoint)
    assert result.output.count(said) == 1
    assert result.exit_code == 0


def test_bench_without_a_repeat_is_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match="repeats=0 is not allowed"):
        bench_engine(engine, BenchOptions((1,), (8,), tokens=4, repeats=0))


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
    for text in ("{", "[]", '{"name": "app"}'):
        (copy / "manifest.json").write_text(text)
        for command in (("inspect", copy), ("evaluate", copy, "--text", __file__)):
            error = ouro(*command).exception
            assert isinstance(error, BundleError)
            assert "manifest.json is damaged or was changed" in str(error)


def test_a_manifest_of_something_else_makes_no_bundle(copied_checkpoint: Path) -> None:
    (copied_checkpoint / "manifest.json").write_text('{"name": "app"}')
    assert ouro("inspect", copied_checkpoint).exit_code == 0
    (copied_checkpoint / "config.json").unlink()
    error = ouro("inspect", copied_checkpoint).exception
    assert isinstance(error, CheckpointError)
    assert "is neither a bundle nor a checkpoint" in str(error)


def test_inspect_checkpoint_needs_no_torch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = ouro("inspect", tiny_checkpoint, "--tensors")
    assert result.exit_code == 0
    assert "has no graph" in str(ouro("inspect", tiny_checkpoint, "--graph").exception)
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
    assert re.search(r"\d+ cores?, ", result.stdout)
    assert len(json.loads((tmp_path / "b.json").read_text())["rows"]) == 2
