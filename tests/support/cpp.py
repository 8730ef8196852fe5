"""What `make cpp` built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# `make cpp-test` names the folder; then what is missing there is a failure, not a skipped test.
NAMED = os.environ.get("OURO_CPP_BUILD")
BUILD = ROOT / (NAMED or "build/cpp/release")
HOME = ROOT / "runtime/cpp"
DEPS = ROOT / "build/cpp/deps"
ONNXRUNTIME = DEPS / "onnxruntime/lib/libonnxruntime.so.1"


def built(name: str) -> Path:
    """A program or library of the build folder, such as `ouro-cli`; skips where it is not built."""
    for path in (BUILD / name, BUILD / "tests" / name):
        if path.exists():
            return path
    reason = f"{name} is not built; run make cpp"
    if NAMED:
        pytest.fail(reason)
    pytest.skip(reason)
