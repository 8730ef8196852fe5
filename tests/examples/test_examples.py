"""The examples run as their users run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def run(name: str, *arguments: object, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "examples" / name), *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_chat_loop_answers_until_an_empty_line(tiny_bundle: Path) -> None:
    shown = run("chat_loop.py", tiny_bundle, 2, given="Hello\nAnd then?\n\n")
    assert shown.count("you: ") == 3
    assert shown.count("model: ") == 2


def test_batch_depths_prints_a_line_a_depth(tiny_bundle: Path) -> None:
    lines = run("batch_depths.py", tiny_bundle, "The sea").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["depth  1", "depth  2", "depth  5"]
    (line,) = run("batch_depths.py", tiny_bundle, "The sea", 3).splitlines()
    assert line.startswith("depth  3: '")
