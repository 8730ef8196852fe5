"""Another state of this code and this one in turn: is today's engine as fast as it was?

    git worktree add ../before REVISION
    python -m bench.trees ../before BEFORE_BUNDLE [BUNDLE]

Each bundle is made by the tree that opens it; one serves both where its format is the same. Both
engines are open at once and take turns, so that a busy machine slows them alike: one after the
other, the same code differed by half here. The process that starts last was up to 4 % faster, so
everything is measured in either order of starting, and a ratio is the mean of both.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import PACKAGES, make_parser
from cli.errors import CommandError, one_line_errors
from cli.output import require_writable, write_json
from runtime.measure.speed import describe_machine

HERE = Path(__file__).resolve().parents[1]
SIDE = Path(__file__).with_name("trees_side.py")
CONTEXTS = (64, 512, 1000)
# ONNX Runtime's threads go on spinning after a call; whoever comes next would pay for that.
PAUSE_S = 0.03


class Side:
    """One tree's engine, open in a process of its own.

    Args:
        name: of the tree, in what is printed.
        tree: a checkout's directory; what runs is its `runtime`, by this process's Python.
        bundle: one that it opens.
        depth: recurrences.

    Raises:
        CommandError: the tree is no checkout, or its engine does not open the bundle.
    """

    def __init__(self, name: str, tree: Path, bundle: Path, depth: int) -> None:
        if not (tree / "runtime" / "__init__.py").is_file():
            raise CommandError(f"{tree} holds no runtime", "name a checkout's directory")
        self.name = name
        environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
        self._process = subprocess.Popen(
            [sys.executable, str(SIDE), str(bundle.resolve()), str(depth)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()  # it is open

    def measure(self, context: int) -> tuple[float, float]:
        """Seconds of feeding `context` tokens, and of a token after them (median of some)."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{context}\n")
        self._process.stdin.flush()
        seconds = self._read()
        return seconds["prefill_s"], statistics.median(seconds["token_s"])

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise CommandError(
                f"the engine of {self.name} ended; what it said is above",
                "give a bundle that this tree made, and a depth that it allows",
            )
        return dict(json.loads(line))


def compare_trees(
    before: Path,
    before_bundle: Path,
    bundle: Path,
    depth: int,
    turns: int,
    contexts: Sequence[int] = CONTEXTS,
) -> dict[str, dict[str, Any]]:
    """Measures both trees, in either order of starting.

    Args:
        before: the other checkout.
        before_bundle: what its engine opens.
        bundle: what this checkout's engine opens.
        depth: recurrences.
        turns: of each in each order; the first of each does not count.
        contexts: numbers of tokens fed first.

    Returns:
        For "prefill 64", "decode 64" and so on: `ratio` (this tree's time by the other's: the
        geometric mean of both orders' medians of the ratios within a turn), `ratios` (of either
        order) and the medians `before_ms` and `now_ms`.

    Raises:
        CommandError: as `Side`.
    """
    trees = {"before": (before, before_bundle), "now": (HERE, bundle)}
    figures: dict[str, dict[str, Any]] = {}
    found: dict[str, list[tuple[float, dict[str, list[float]]]]] = {}
    for order in (("before", "now"), ("now", "before")):
        with contextlib.ExitStack() as opened:
            sides = {}
            for name in order:
                sides[name] = Side(name, *trees[name], depth)
                opened.callback(sides[name].close)
            for context in contexts:
                samples = _take_turns(sides, context, turns)
                for phase, seconds in samples.items():
                    pairs = zip(seconds["now"], seconds["before"], strict=True)
                    ratio = statistics.median(now / then for now, then in pairs)
                    found.setdefault(f"{phase} {context}", []).append((ratio, seconds))
    for what, orders in found.items():
        ratios = [ratio for ratio, _ in orders]
        figures[what] = {
            "ratio": round(math.prod(ratios) ** (1 / len(ratios)), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }
        for name in trees:
            both = [one for _, seconds in orders for one in seconds[name]]
            figures[what][f"{name}_ms"] = round(statistics.median(both) * 1e3, 2)
    return figures


def _take_turns(
    sides: dict[str, Side], context: int, turns: int
) -> dict[str, dict[str, list[float]]]:
    samples: dict[str, dict[str, list[float]]] = {
        phase: {name: [] for name in sides} for phase in ("prefill", "decode")
    }
    names = list(sides)
    for turn in range(turns + 1):
        for name in names if turn % 2 else reversed(names):
            time.sleep(PAUSE_S)
            prefill_s, token_s = sides[name].measure(context)
            if turn:
                samples["prefill"][name].append(prefill_s)
                samples["decode"][name].append(token_s)
    return samples


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints; with `--json` writes the figures too."""
    parser = make_parser("bench.trees", __doc__)
    parser.add_argument("before", type=Path, help="a checkout of another revision")
    parser.add_argument("before_bundle", type=Path, help="a bundle that it opens")
    parser.add_argument("bundle", type=Path, nargs="?", help="that of this checkout, if another")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--turns", type=int, default=12, help="of each, in either order")
    parser.add_argument("--context", type=int, nargs="+", default=CONTEXTS, help="tokens fed first")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    bundle = given.bundle or given.before_bundle
    require_writable(given.json, [given.before_bundle, bundle])
    if given.turns < 1:
        raise CommandError(f"{given.turns} turns", "give one at least")
    figures = compare_trees(
        given.before, given.before_bundle, bundle, given.depth, given.turns, given.context
    )
    for what, row in figures.items():
        print(
            f"{what:<13} {row['before_ms']:>8.2f} ms before, {row['now_ms']:>8.2f} now; "
            f"now / before {row['ratio']:.3f} ({', '.join(map(str, row['ratios']))})"
        )
    machine = describe_machine(PACKAGES)
    print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}")
    print(", ".join(f"{name} {number}" for name, number in machine["versions"].items()))
    if given.json is not None:
        write_json(given.json, {"depth": given.depth, "machine": machine, **figures})


if __name__ == "__main__":
    with one_line_errors():
        main()
