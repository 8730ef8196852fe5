"""Whether Ctrl-C was pressed: what breaks off because of it may end in an error of any kind.

An import swallows the exception at times, and fails later for what it lacks.
"""

from __future__ import annotations

import signal
from types import FrameType

received: list[int] = []


def heed() -> None:
    """Notes every SIGINT from now on; it raises KeyboardInterrupt as before."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def _note(number: int, frame: FrameType | None) -> None:
    received.append(number)
    signal.default_int_handler(number, frame)
