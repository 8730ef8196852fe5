"""Commands made from options classes: every field an option, its default from one place."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import COMMANDS, app
from cli.errors import CommandError
from cli.options import parse_numbers
from export import ExportOptions, export_bundle
from ouroboros import ConvertOptions, TrainOptions, convert
from ouroboros.delta.options import DeltaOptions
from ouroboros.errors import DataError, TrainingError
from ouroboros.eval_options import EvalOptions
from ouroboros.halting.options import HalterOptions
from ouroboros.text.sample_options import SampleOptions
from ouroboros.training.recipe import read_recipe
from runtime.measure.options import BenchOptions

OPTIONS = {
    "convert": ConvertOptions,
    "sample": SampleOptions,
    "train": TrainOptions,
    "halter": HalterOptions,
    "eval": EvalOptions,
    "export": ExportOptions,
    "bench": BenchOptions,
    "delta": DeltaOptions,
}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_field_is_an_option_with_its_help_and_default(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).output
    for field in dataclasses.fields(OPTIONS[command]):
        flag = field.metadata["flags"] or "--" + field.name.replace("_", "-")
        start = rf"│[ *]+{flag.partition('/')[0]} "  # a star where another option is required
        (line,) = [one for one in shown.splitlines() if re.match(start, one)]
        assert field.metadata["help"] in line
        said = re.search(r"default:? (\S+?)[\])]", line)
        if field.default == "":
            assert said is None, "nothing is the default, so that nothing is said of it"
            continue
        if isinstance(field.default, bool):
            assert said is None or said[1] in ("on", "off", field.name), "a number is no switch"
            continue
        if field.default in (None, ()):
            continue
        assert said is not None, line
        assert type(field.default)(said[1]) == field.default


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_has_a_number_for_a_default(command: str) -> None:
    """The library has it too, so that it would stand twice: it belongs into an options class."""
    tree = ast.parse(inspect.getsource(inspect.unwrap(COMMANDS[command])))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    values = [one.value for one in function.args.defaults if isinstance(one, ast.Constant)]
    assert [one for one in values if type(one) in (int, float)] == []


@pytest.mark.parametrize("sizes", [{"windows": 0}, {"seq_len": 1}])
def test_windows_that_score_nothing_are_no_options(sizes: dict[str, int]) -> None:
    with pytest.raises(DataError, match="scores nothing"):
        EvalOptions(**sizes)


def test_library_takes_options_and_changes(tmp_path: Path) -> None:
    for call in (
        lambda: convert("x", tmp_path / "out", ConvertOptions(), preludes=3),
        lambda: export_bundle(tmp_path, tmp_path / "out", max_depht=3),
    ):
        with pytest.raises(TypeError, match=r"unexpected keyword argument '(preludes|max_depht)'"):
            call()


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("train_step", "did you mean train_steps?"),
        ("learnig_rate", "did you mean learning_rate?"),
        ("colour", "the options are adapter_alpha, "),
    ],
)
def test_unknown_recipe_key_names_its_nearest_match(tmp_path: Path, key: str, cure: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f"{key} = 1\n")
    with pytest.raises(TrainingError, match=f"unknown option '{key}'") as caught:
        read_recipe(recipe)
    assert caught.value.cure.startswith(cure)


def test_parse_numbers() -> None:
    assert parse_numbers("1,4, 8", "--depth") == [1, 4, 8]
    assert parse_numbers("1-4,2,9", "--depth") == [1, 2, 3, 4, 9]
    for bad in ("", "a", "0", "4-1", "1,,2", "1-99999999"):
        with pytest.raises(CommandError, match="--depth"):
            parse_numbers(bad, "--depth")
