"""The entry point of `ouro`: imports nothing before it can answer Ctrl-C in one line."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs `ouro` with the arguments of this process."""
    try:
        from cli.app import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
