"""Starts the real `ouro` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-c", "from cli.main import main; main()")


def environment() -> dict[str, str]:
    """The variables of a plain terminal, with no network."""
    plain = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    plain.pop("OURO_DEBUG", None)
    return plain


def run_ouro(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
        **options,
    )


def start_ouro(*arguments: object, code: str = COMMAND[2]) -> subprocess.Popen[str]:
    """Starts a command and returns while it runs; `code` takes the place of ouro's own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
