"""Starts the real `ouro` in a process of its own."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.support.paths import ROOT

OURO = "from cli.main import main; main()"
# Where only what follows the tracing is looked at.
WITH_KEPT_TRACES = "from tests.support.traces import keep_traces; keep_traces(); " + OURO


def environment() -> dict[str, str]:
    """The variables of a plain terminal, with no network."""
    plain = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    plain.pop("OURO_DEBUG", None)
    return plain


@contextmanager
def limited_files() -> Iterator[None]:
    """Lets no file grow past 4 KB: a write fails as on a full disk, but for the error's number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def answered_signals() -> Iterator[None]:
    """Lets SIGINT, SIGTERM and SIGHUP come through, here and in a process started meanwhile.

    Where they are ignored as this process starts, as under nohup or in a script's background job,
    its children would ignore them too.
    """
    answers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, answer) for number, answer in answers.items()}
    try:
        yield
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)


def start_process(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Starts a process that answers signals; `options` are Popen's."""
    with answered_signals():
        return subprocess.Popen(command, **options)


def run_ouro(
    *arguments: object, code: str = OURO, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; `code` takes the place of ouro's own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
        **options,
    )


def call_ouro(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process, which has loaded its libraries, and as `run_ouro` else."""
    from typer.testing import CliRunner

    from cli.app import app

    command = [str(argument) for argument in arguments]
    done = CliRunner().invoke(app, command, env=environment(), catch_exceptions=False)
    return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)


def start_ouro(*arguments: object, code: str = OURO) -> subprocess.Popen[str]:
    """Starts a command and returns while it runs; `code` takes the place of ouro's own."""
    return start_process(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "PYTHONPATH": str(ROOT)},
    )
