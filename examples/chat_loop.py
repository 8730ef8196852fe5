"""A chat in the terminal, which keeps its cache between turns. An empty line ends it.

python examples/chat_loop.py BUNDLE [DEPTH]
"""

from __future__ import annotations

import sys

from runtime import Engine, EngineError


def main() -> None:
    """Answers line by line."""
    bundle, depth = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None
    with Engine.open(bundle) as engine:
        session = engine.session(depth)
        while question := input("you: ").strip():
            print("model: ", end="")
            try:
                for piece in session.stream(
                    question, chat=True, max_new_tokens=120, repetition_penalty=1.1
                ):
                    print(piece.text, end="", flush=True)
            except EngineError as error:  # such as a conversation that has grown too long
                print(error)
                session.reset()
            print()


if __name__ == "__main__":
    main()
