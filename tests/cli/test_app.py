"""The command line: help, errors in one line, exit statuses, Ctrl-C."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import errors
from cli.app import OneLineErrors, app
from tests.support.paths import ROOT
from tests.support.processes import call_ouro, start_process
from tests.support.processes import run_ouro as ouro

COMMANDS = (
    *("convert", "train", "eval", "export", "run", "check", "bench", "inspect"),
    *("delta", "halter", "restore", "sample"),
)


def expect_one_line(result: subprocess.CompletedProcess[str], pattern: str) -> None:
    assert result.returncode == 1, result
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert re.search(pattern, lines[0]), lines[0]


def make_app(body: Callable[[], None]) -> typer.Typer:
    """A one-command app with the error handling of `ouro`."""
    made = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)

    def start(debug: bool = False) -> None:
        """Start."""

    made.callback()(start)
    made.command("go")(body)
    return made


def raiser(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def test_help_lists_every_command_and_no_other() -> None:
    result = ouro("--help")
    assert result.returncode == 0
    listed = re.findall(r"^│ (\w+) {2,}", result.stdout, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*COMMANDS, "doctor"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_command_has_examples(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"ouro {command} " in result.output
    assert "\\b" not in result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, cli.app\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"ouroboros-llm \d+\.\d+\.\d+\n", result.output)


def test_usage_error_exits_2() -> None:
    assert ouro("--no-such-option").returncode == 2
    assert ouro("convert", "one").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (
            ["run", "B", "x", "--depth", "abc"],
            1,
            "--depth 'abc' is no depth; give a number, or auto",
        ),
        (["run", "B", "x", "--top-p", "y"], 1, "Invalid value for '--top-p': .*; see `.*run --h"),
        (["convert", "A", "B", "--rank", "1.5"], 1, "Invalid value for '--rank'"),
        (["run", "B", "x", "--dept", "3"], 2, "No such option:? '?--dept\\b.*--depth"),
        (["run", "B"], 2, "Missing argument '(prompt|PROMPT)'; see `.*run --help`"),
        (["run", "B", "x", "--depth"], 2, "Option '--depth' requires an argument"),
        (["run", "B", "x", "y"], 2, "unexpected extra argument"),
        (["runn"], 2, "No such command 'runn'"),
        (["--nonsense"], 2, "No such option:? '?--nonsense'?; see `.* --help`"),
    ],
)
def test_usage_error_is_one_line(arguments: list[str], status: int, line: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == status
    assert re.fullmatch(f"error: .*{line}.*\n", result.stderr), result.stderr


def test_no_arguments_shows_help() -> None:
    for arguments in ([], ["run"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert "Usage: " in result.output
        assert "error:" not in result.output


NEEDS_TORCH = pytest.mark.needs_torch
PLACES = ("empty", "missing", "out", "full", "file", "deep", "original")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["run", "{empty}", "hello"], "manifest.json|no bundle"),
        (["check", "{empty}"], "manifest.json|no bundle"),
        (["bench", "{missing}"], "no bundle at"),
        (["inspect", "{missing}"], "missing"),
        pytest.param(["export", "{empty}", "{out}"], "no checkpoint here", marks=NEEDS_TORCH),
        pytest.param(
            ["convert", "{missing}/model.gguf", "{out}"], "no such file", marks=NEEDS_TORCH
        ),
        pytest.param(["convert", "{empty}", "{out}"], "config.json", marks=NEEDS_TORCH),
        pytest.param(
            ["convert", "{empty}", "{full}"],
            "not of Ouroboros, so it is left alone",
            marks=NEEDS_TORCH,
        ),
        pytest.param(
            ["export", "{empty}", "{full}"],
            "not of Ouroboros, so it is left alone",
            marks=NEEDS_TORCH,
        ),
        pytest.param(["convert", "{empty}", "{file}"], "is a file", marks=NEEDS_TORCH),
        pytest.param(
            ["convert", "{empty}", "{deep}"],
            "not of Ouroboros, so it is left alone",
            marks=NEEDS_TORCH,
        ),
        pytest.param(
            ["export", "{empty}", "{deep}"],
            "not of Ouroboros, so it is left alone",
            marks=NEEDS_TORCH,
        ),
        (["inspect", "{deep}"], "is not JSON"),
        (["inspect", "{original}"], r"original model \(llama\), .* ouro convert .*original OUT"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], pattern: str) -> None:
    places = {name: tmp_path / name for name in PLACES}
    places["empty"].mkdir()
    places["full"].mkdir()
    (places["full"] / "thesis.txt").write_text("years of work")
    places["file"].write_text("text")
    places["deep"].mkdir()
    (places["deep"] / "manifest.json").write_text("[" * 100_000)
    places["original"].mkdir()
    (places["original"] / "config.json").write_text('{"model_type": "llama"}')
    expect_one_line(call_ouro(*(part.format(**places) for part in arguments)), pattern)
    assert not places["out"].exists()
    assert (places["full"] / "thesis.txt").read_text() == "years of work"


def test_debug_shows_traceback(tmp_path: Path) -> None:
    result = ouro("--debug", "run", tmp_path, "hello")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing"),
    ],
)
def test_full_disk_is_one_line(error: Exception) -> None:
    result = CliRunner().invoke(make_app(raiser(error)), ["go"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no space left on the disk")
    assert len(result.stderr.splitlines()) == 1


def test_an_error_steers_no_terminal() -> None:
    error = errors.OuroError("the tensor \x1b]0;title\x07 is\n\x9b31m unknown")
    result = CliRunner().invoke(make_app(raiser(error)), ["go"])
    assert result.stderr == "error: the tensor \\x1b]0;title\\x07 is \\x9b31m unknown\n"


def test_full_disk_is_seen_through_wrapping() -> None:
    cause = OSError(errno.ENOSPC, "No space left on device")
    error = RuntimeError("cannot save")
    error.__cause__ = cause
    assert "no space left" in (errors.describe(error) or "")


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "train"), ("onnx_ir", "export"), ("matplotlib.pyplot", "plot")]
)
def test_missing_extra_names_its_install(module: str, extra: str) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    line = errors.describe(error)
    assert line == (
        f"{module.partition('.')[0]} is not installed; "
        f'run pip install ".[{extra}]" in the checkout '
        "of ouroboros"
    )


def test_missing_module_of_ours_is_a_bug() -> None:
    assert errors.describe(ModuleNotFoundError("No module named 'x'", name="x")) is None


def test_ctrl_c_that_a_command_has_answered_is_not_said_again() -> None:
    def body() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            typer.echo("interrupted; go on with --resume", err=True)
            raise typer.Exit(130) from None

    result = CliRunner().invoke(make_app(body), ["go"])
    assert result.exit_code == 130
    assert result.stderr == "interrupted; go on with --resume\n"


@pytest.mark.parametrize("module", ["bench.decode", "demo.tokens"])
def test_scripts_end_in_one_line(tmp_path: Path, module: str) -> None:
    command = [sys.executable, "-m", module, str(tmp_path / "bundle"), str(tmp_path / "model")]
    for folder in command[3:]:
        Path(folder).mkdir()
    result = subprocess.run(
        [*command, "--json", str(tmp_path / "nowhere" / "out.json")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    expect_one_line(result, "its directory is not there")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_SCRIPT, module, *command[3:], "--json", "x.json"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (130, "interrupted\n")


# Runs a module as a script; Ctrl-C comes when it first imports torch.
INTERRUPTED_SCRIPT = """
import runpy, sys
class Stop:
    def find_spec(self, name, *rest):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
module = sys.argv[1]
sys.argv[:2] = [module]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def test_unreadable_file_is_one_line(tmp_path: Path) -> None:
    def body() -> None:
        (tmp_path / "gone.txt").read_text()

    result = CliRunner().invoke(make_app(body), ["go"])
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / 'gone.txt'}: No such file or directory\n"


def test_bug_keeps_its_traceback() -> None:
    result = CliRunner().invoke(make_app(raiser(ZeroDivisionError("oops"))), ["go"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_ctrl_c_says_interrupted() -> None:
    result = CliRunner().invoke(make_app(raiser(KeyboardInterrupt())), ["go"])
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_ctrl_c_in_real_process(tmp_path: Path) -> None:
    script = tmp_path / "wait.py"
    script.write_text(
        "import sys, time, typer\n"
        "from cli.app import app\n"
        "from cli.main import main\n"
        "def wait() -> None:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "app.command('wait')(wait)\n"
        "main()\n"
    )
    process = start_process(
        [sys.executable, str(script), "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "interrupted\n"
