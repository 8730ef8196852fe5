"""The entry point of `ouro`: imports nothing before it can answer Ctrl-C in one line.

Whatever a command prints, a terminal or pipe with a narrow encoding shows what it can.
"""

from __future__ import annotations

import io
import signal
import sys
from types import FrameType
from typing import NoReturn

from cli import interrupts


def main() -> None:
    """Runs `ouro` with the arguments of this process.

    A signal that asks it to end lets it clear up what it was writing.
    """
    interrupts.heed()
    _replace_what_cannot_be_shown()
    for name in ("SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):
            _end_by(number)
    try:
        from cli.app import app

        app()
    except (KeyboardInterrupt, Exception) as error:
        if not interrupts.received and not isinstance(error, KeyboardInterrupt):
            raise
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _replace_what_cannot_be_shown() -> None:
    # Strings with a lone surrogate can't be UTF-8 either, so that every stream needs it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def _end_by(number: signal.Signals) -> None:
    def end(received: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + received)

    # One that is ignored, as under nohup, stays ignored; a command's own handler comes later.
    if signal.getsignal(number) == signal.SIG_DFL:
        signal.signal(number, end)


if __name__ == "__main__":  # `accelerate launch -m cli.main`
    main()
