"""Runs the programs of examples/ as a user does: a process, with text on its standard input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime import Engine
from tests.support.paths import ROOT
from tests.support.processes import environment

EXAMPLES = ROOT / "examples"
MOST_LINES = 60


def run_example(name: str, *arguments: object, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )


def test_chat_loop_answers_each_turn(tiny_bundle: Path, engine: Engine) -> None:
    done = run_example("chat_loop.py", tiny_bundle, 3, text="Hello\nAnd then?\n\nnot read\n")
    assert done.returncode == 0, done.stderr
    session = engine.session(3)
    answers = [
        session.generate(turn, max_new_tokens=128, chat=True).text
        for turn in ("Hello", "And then?")
    ]
    for answer in answers:
        assert f"> {answer}\n" in done.stdout
    assert done.stdout.count("> ") >= 3


def test_batch_depths_gives_what_each_prompt_gives_alone(tiny_bundle: Path, engine: Engine) -> None:
    prompts = ["One", "Another prompt", "A third"]
    done = run_example("batch_depths.py", tiny_bundle, 1, 4, text="\n".join(prompts))
    assert done.returncode == 0, done.stderr
    for prompt, depth in zip(prompts, (1, 4, 1), strict=True):
        text = engine.generate(prompt, depth=depth, max_new_tokens=32).text
        assert f"[depth {depth}] {prompt}{text} (" in done.stdout


@pytest.mark.parametrize("name", ["chat_loop.py", "batch_depths.py"])
def test_example_names_a_wrong_path(name: str, tmp_path: Path) -> None:
    done = run_example(name, tmp_path / "none", text="Hello\n")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no bundle at")
    assert len(done.stderr.splitlines()) == 1


def test_examples_are_short() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    assert {"chat_loop.py", "batch_depths.py"} <= {file.name for file in files}
    for name in ("chat_loop.py", "batch_depths.py"):
        assert len((EXAMPLES / name).read_text().splitlines()) < MOST_LINES
