"""The C++ library's tokenizers against Hugging Face's, and the files written from these."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.cpp import HOME, built
from tests.support.paths import ROOT


def run(script: Path, *arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_tokens_are_those_of_tokenizers() -> None:
    """A sample: without options the script takes all code points and 200,000 strings a family."""
    program = built("tokenizer_pipe")
    script = HOME / "tests/text/compare_tokenizers.py"
    run(script, program, "--strings", "2000", "--stride", "997")


def test_recorded_tokens_are_up_to_date() -> None:
    run(HOME / "tests/text/make_tokens.py", "--check")
