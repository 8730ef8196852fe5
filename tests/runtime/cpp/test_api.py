"""What programs do to the library: opened again and again, outlived, closed, shared, misused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cpp import ONNXRUNTIME, built

SCENARIOS = {
    "abuse": (
        "reopen", "outlive", "closing", "leaving", "threads", "busy", "callbacks", "requests"
    ),
    "misuse": ("opening", "handles", "prompts", "outputs", "texts"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("program", "scenario"), [(program, one) for program, some in SCENARIOS.items() for one in some]
)
def test_library_survives(program: str, scenario: str, tiny_bundle: Path) -> None:
    done = subprocess.run(
        [built(program), tiny_bundle, scenario],
        env=dict(os.environ, LD_LIBRARY_PATH=str(ONNXRUNTIME.parent)),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_reported(tiny_bundle: Path, tmp_path: Path) -> None:
    """Where ONNX Runtime means to send something, it first writes below the home directory."""
    keep = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR")}
    done = subprocess.run(
        [built("abuse"), tiny_bundle, "outlive"],
        env=keep | {"HOME": str(tmp_path), "LD_LIBRARY_PATH": str(ONNXRUNTIME.parent)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", SCENARIOS)
def test_every_scenario_is_run(program: str) -> None:
    done = subprocess.run([built(program)], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == sorted(SCENARIOS[program])
