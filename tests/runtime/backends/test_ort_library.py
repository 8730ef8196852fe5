"""ONNX Runtime reports nothing of what runs on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

PROGRAM = """
import sys
from runtime import Engine

with Engine.open(sys.argv[1], backend="cpu", threads=1) as engine:
    engine.generate([5, 6, 7], max_new_tokens=2)
"""


def test_nothing_is_reported(tiny_bundle: Path, tmp_path: Path) -> None:
    """Where it means to send something, it first writes below the home directory."""
    keep = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tiny_bundle],
        env=keep | {"HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
