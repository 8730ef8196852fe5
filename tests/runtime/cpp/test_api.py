"""What programs do to the library: opened again and again, outlived, closed, shared, misused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cpp import ONNXRUNTIME, built

SCENARIOS = (
    "reopen", "outlive", "closing", "threads", "busy", "callbacks", "handles", "requests",
)  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_library_survives(scenario: str, tiny_bundle: Path) -> None:
    done = subprocess.run(
        [built("abuse"), tiny_bundle, scenario],
        env=dict(os.environ, LD_LIBRARY_PATH=str(ONNXRUNTIME.parent)),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_every_scenario_is_run() -> None:
    done = subprocess.run([built("abuse")], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == sorted(SCENARIOS)
