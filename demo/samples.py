"""Continues the shown prompts with a bundle, at every depth of the settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.errors import one_line_errors
from cli.output import require_writable, write_json
from demo import settings


def continue_prompt(engine: Any, prompt: str) -> dict[str, str]:
    """Returns what follows a prompt, sampled as the settings say, by depth.

    Args:
        engine: a bundle, opened.
        prompt: text.
    """
    sampling: dict[str, Any] = {**settings.SHOWN_SAMPLING}
    return {
        str(depth): engine.generate(
            prompt, depth=depth, max_new_tokens=settings.SHOWN_TOKENS, **sampling
        ).text
        for depth in settings.DEPTHS
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the continuations of the prompts that are shown of the ready model."""
    parser = argparse.ArgumentParser(prog="python -m demo.samples", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args(arguments)
    require_writable(given.json, [given.bundle])
    from runtime import Engine

    with Engine.open(given.bundle) as engine:
        samples = {prompt: continue_prompt(engine, prompt) for prompt in settings.READY_PROMPTS}
    for prompt, texts in samples.items():
        for depth, text in texts.items():
            print(f"depth {depth:>2}: {prompt}{text}", flush=True)
    write_json(given.json, samples)


if __name__ == "__main__":
    with one_line_errors():
        main()
