"""Runs the programs of examples/ as a user does: a process, with text on its standard input."""

from __future__ import annotations

import itertools
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import Engine
from runtime.decode.decoder import Decoder
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


def test_chat_loop_goes_on_after_an_interrupt(
    tiny_bundle: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls, real = itertools.count(1), Decoder.step

    def step(self: Decoder, tokens: Any) -> Any:
        if next(calls) == 5:  # Ctrl-C after the fifth token
            raise KeyboardInterrupt
        return real(self, tokens)

    turns = iter(["Hello", "And then?", ""])
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", step)
        patch.setattr("builtins.input", lambda prompt: next(turns))
        runpy.run_path(str(EXAMPLES / "chat_loop.py"))["chat"](str(tiny_bundle), 3)
    session = engine.session(3)
    stream: Any = session.stream("Hello", max_new_tokens=128, chat=True)
    cut = "".join(next(stream).text for _ in range(5))
    stream.close()
    answer = session.generate("And then?", max_new_tokens=128, chat=True).text
    assert capsys.readouterr().out.partition("\n")[2] == f"{cut} ...\n{answer}\n"


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
