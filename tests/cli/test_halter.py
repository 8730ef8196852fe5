"""`ouro halter`, and `--depth auto` of `ouro run`, `eval` and `inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cli.errors import CommandError
from cli.evaluate import evaluate, parse_depths
from cli.halter import halter
from cli.inspect import inspect
from cli.run import run
from ouroboros.errors import ConfigError
from runtime import Engine, EngineError

pytestmark = pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")
TEXT = "the quick brown fox jumps over the lazy dog and runs away again " * 30


def ouro(*arguments: object) -> Result:
    app = typer.Typer()
    for command in (run, halter, evaluate, inspect):
        app.command(command.__name__)(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "plain.txt"
    path.write_text(TEXT)
    return path


def test_halter_makes_a_checkpoint_that_chooses(
    tiny_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adaptive"
    few = ("--windows", 8, "--seq-len", 32, "--prompts", 2, "--price", 0.02)
    result = ouro("halter", tiny_checkpoint, out, "--data", text, *few)
    assert result.exit_code == 0, result.output
    assert "mean depth" in result.stdout
    assert "best fixed depth" in result.stdout
    assert f"wrote {out}" in result.stdout
    assert json.loads((out / "config.json").read_text())["halter"] == "trained"
    scored = ouro("evaluate", out, "--text", text, "--depth", "1,auto", "--seq-len", 32)
    assert scored.exit_code == 0, scored.output
    assert "auto" in scored.stdout
    assert "the second half scored after a prompt of 16" in " ".join(scored.stdout.split())


def test_run_chooses_and_says_what(halting_bundle: Path) -> None:
    with Engine.open(halting_bundle, backend="cpu") as engine:
        wanted = engine.generate("Hello", "auto", max_new_tokens=8)
        low = engine.generate("Hello", "auto", halt_threshold=0.01, max_new_tokens=8)
    result = ouro("run", halting_bundle, "Hello", "--depth", "auto", "--max-new-tokens", 8)
    assert result.exit_code == 0
    assert result.stdout == wanted.text + "\n"
    assert f"depth {wanted.depth}, chosen on the prompt" in result.stderr
    given = ("--depth", "auto", "--halt-threshold", 0.01, "--max-new-tokens", 8)
    assert f"depth {low.depth}, chosen" in ouro("run", halting_bundle, "Hello", *given).stderr


def test_run_without_a_halter_and_with_no_depth_are_refused(tiny_bundle: Path) -> None:
    without = ouro("run", tiny_bundle, "Hello", "--depth", "auto")
    assert isinstance(without.exception, EngineError)
    assert isinstance(ouro("run", tiny_bundle, "x", "--depth", "deep").exception, CommandError)
    fixed = ouro("run", tiny_bundle, "x", "--depth", 2, "--halt-threshold", 0.5)
    assert isinstance(fixed.exception, EngineError)


def test_eval_scores_bundle_and_checkpoint_alike(
    halting_bundle: Path, halting_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    rows = {}
    for subject in (halting_bundle, halting_checkpoint):
        file = tmp_path / f"{subject.name}.json"
        options = ("--depth", "auto,2", "--seq-len", 24, "--windows", 3, "--json", file)
        result = ouro("evaluate", subject, "--text", text, *options)
        assert result.exit_code == 0, result.output
        found = json.loads(file.read_text())
        assert found["prefix"] == 12
        assert [row["depth"] for row in found["rows"]] == [2, "auto"]
        rows[subject] = found["rows"]
    for ours, theirs in zip(*rows.values(), strict=True):
        assert ours["mean"] == pytest.approx(theirs["mean"], rel=1e-4)
        assert ours.get("mean_depth") == theirs.get("mean_depth")
    assert 1 <= rows[halting_bundle][1]["mean_depth"] <= 4


def test_eval_refuses_a_model_that_can_not_choose(
    tiny_bundle: Path, tiny_checkpoint: Path, text: Path
) -> None:
    for subject, error in ((tiny_bundle, EngineError), (tiny_checkpoint, ConfigError)):
        result = ouro("evaluate", subject, "--text", text, "--depth", "auto", "--seq-len", 24)
        assert isinstance(result.exception, error)
        assert "halter" in str(result.exception)


def test_inspect_says_how_a_bundle_chooses(halting_bundle: Path) -> None:
    result = ouro("inspect", halting_bundle)
    assert "--depth auto: trained, at 0.5, at most 4 steps" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("auto", ["auto"]), ("1,8", [1, 8]), ("auto, 1-3", [1, 2, 3, "auto"]), ("2", [2])],
)
def test_depths_are_numbers_and_auto(given: str, wanted: list[object]) -> None:
    assert parse_depths(given) == wanted


def test_other_words_are_no_depths() -> None:
    with pytest.raises(CommandError, match="--depth 1,all is not a list of numbers"):
        parse_depths("1,all")
