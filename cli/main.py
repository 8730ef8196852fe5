"""The entry point of `ouro`: imports nothing before it can answer Ctrl-C in one line."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Runs `ouro` with the arguments of this process.

    A signal that asks it to end lets it clear up what it was writing.
    """
    for name in ("SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):
            _end_by(number)
    try:
        from cli.app import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _end_by(number: signal.Signals) -> None:
    def end(received: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + received)

    # One that is ignored, as under nohup, stays ignored; a command's own handler comes later.
    if signal.getsignal(number) == signal.SIG_DFL:
        signal.signal(number, end)
