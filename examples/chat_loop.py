"""A chat in the terminal: python examples/chat_loop.py BUNDLE [DEPTH].

Each line you type is a turn of one conversation, whose cache is kept between turns. An empty line
or the end of the input ends the chat; Ctrl-C ends an answer.
"""

from __future__ import annotations

import sys

from runtime import Engine
from runtime.errors import BundleError, EngineError


def chat(bundle: str, depth: int | None) -> None:
    """Reads turns from the terminal and answers each as it is generated.

    Args:
        bundle: a bundle with a chat template.
        depth: recurrences of every answer; None takes the bundle's default.

    Raises:
        BundleError: the bundle is not whole.
        EngineError: it has no chat template, or the conversation has grown too long for it.
    """
    with Engine.open(bundle) as engine:
        session = engine.session(depth)
        print(f"depth {session.depth} on {engine.backend}; an empty line ends the chat")
        while line := read_turn():
            try:
                for piece in session.stream(line, max_new_tokens=128, chat=True):
                    print(piece.text, end="", flush=True)
            except KeyboardInterrupt:  # the session keeps what was said
                print(" ...", end="")
            print()


def read_turn() -> str:
    """Returns the next line, empty at the end of the input."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(f"usage: {sys.argv[0]} BUNDLE [DEPTH]")
    try:
        chat(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else None)
    except (BundleError, EngineError, ValueError) as error:
        sys.exit(f"error: {error}")
