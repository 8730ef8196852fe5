"""Processes that begin with the libraries loaded: to load them takes longer than what a test does.

One process loads them once, and every other is a fork of it, with nothing else in its memory.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tests.support.processes import environment

LOADED = (
    "cli.app", "export.bundle", "ouroboros.training.run", "tests.support.traces",
    "tests.support.training",
)  # fmt: skip


def fork(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Starts a process that calls a function of a module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    process: BaseProcess = context.Process(target=target, args=arguments)
    process.start()
    return process


def fork_with_pipe(target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """The same, whose first argument is the other end of the pipe that is returned."""
    own, other = multiprocessing.get_context("forkserver").Pipe()
    process = fork(target, other, *arguments)
    other.close()
    return process, own


class ForkedOuro:
    """An `ouro` that runs; to be waited for and broken off as `subprocess.Popen`."""

    def __init__(self, *arguments: object, kept_traces: bool = False) -> None:
        """Starts a command; it takes what the tracer made from the tests' folder where asked to."""
        pipes = [multiprocessing.get_context("forkserver").Pipe(duplex=False) for _ in range(2)]
        words = ["ouro", *map(str, arguments)]
        self._process = fork(_be_ouro, [end for _, end in pipes], words, kept_traces)
        for _, end in pipes:
            end.close()
        self.stdout, self._stderr = (
            open(os.dup(end.fileno()), encoding="utf-8")  # noqa: SIM115
            for end, _ in pipes
        )

    @property
    def returncode(self) -> int | None:
        """Its exit status, once it ended."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to it alone."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Waits for its end; returns what it wrote that was not read yet."""
        self._process.join(timeout)
        assert self.returncode is not None, f"it did not end in {timeout} s"
        with self.stdout, self._stderr:
            return self.stdout.read(), self._stderr.read()


def _be_ouro(ends: list[Connection], words: list[str], kept_traces: bool) -> None:
    for number, end in enumerate(ends, start=1):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), encoding="utf-8")
        for number in (1, 2)
    )
    os.environ.update(environment())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests' is
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if kept_traces:
        from tests.support.traces import keep_traces

        keep_traces()
    sys.argv = words
    from cli.main import main

    try:
        main()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
