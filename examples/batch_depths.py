"""One prompt at several depths in one batch: the same weights, more and more steps.

python examples/batch_depths.py BUNDLE "PROMPT" [DEPTH ...]
"""

from __future__ import annotations

import sys

from runtime import Engine


def main() -> None:
    """Prints a line a depth."""
    bundle, prompt, *given = sys.argv[1:]
    with Engine.open(bundle) as engine:
        most = engine.manifest.depth.max
        depths = [int(one) for one in given] or sorted({1, most // 4 or 1, most // 2 or 1, most})
        prompts = [prompt] * len(depths)
        for depth, found in zip(
            depths, engine.generate(prompts, depths, max_new_tokens=24), strict=True
        ):
            print(f"depth {depth:2}: {found.text!r}")


if __name__ == "__main__":
    main()
