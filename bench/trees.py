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
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import PACKAGES, Child, make_parser, print_machine
from cli.errors import CommandError, one_line_errors
from cli.output import require_writable, write_json
from runtime.measure.speed import describe_machine

HERE = Path(__file__).resolve().parents[1]
SIDE = Path(__file__).with_name("trees_side.py")
CONTEXTS = (64, 512, 1000)
# ONNX Runtime's threads go on spinning after a call; whoever comes next would pay for that.
PAUSE_S = 0.03


def start_engine(name: str, tree: Path, bundle: Path, depth: int) -> Child:
    """Opens a tree's engine in a process of its own.

    Args:
        name: of the tree, in what is printed.
        tree: a checkout's directory; what runs is its `runtime`, by this process's Python.
        bundle: one that it opens.
        depth: recurrences.

    Raises:
        CommandError: the tree is no checkout, or its engine does not open the bundle.
    """
    if not (tree / "runtime" / "__init__.py").is_file():
        raise CommandError(f"{tree} holds no runtime", "name a checkout's directory")
    ended = CommandError(
        f"the engine of {name} ended; what it said is above",
        "give a bundle that this tree made, and a depth that it allows",
    )
    words = [sys.executable, str(SIDE), str(bundle.resolve()), str(depth)]
    return Child(words, ended, os.environ | {"PYTHONPATH": str(tree.resolve())})


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
        turns: of each in each order; one more comes first and does not count.
        contexts: numbers of tokens fed first.

    Returns:
        For "prefill 64", "decode 64" and so on: `ratio` (this tree's time by the other's: the
        geometric mean of both orders' medians of the ratios within a turn), `ratios` (of either
        order) and the medians `before_ms` and `now_ms`.

    Raises:
        CommandError: as `start_engine`.
    """
    trees = {"before": (before, before_bundle), "now": (HERE, bundle)}
    found: dict[str, list[dict[str, list[float]]]] = {}
    for order in (("before", "now"), ("now", "before")):
        with contextlib.ExitStack() as opened:
            sides = {}
            for name in order:
                sides[name] = start_engine(name, *trees[name], depth)
                opened.callback(sides[name].close)
            for context in contexts:
                samples = _take_turns(sides, context, turns)
                for phase, seconds in samples.items():
                    found.setdefault(f"{phase} {context}", []).append(seconds)
    return {what: _sum_up(orders) for what, orders in found.items()}


def _sum_up(orders: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    pairs = [zip(seconds["now"], seconds["before"], strict=True) for seconds in orders]
    ratios = [statistics.median(now / then for now, then in one) for one in pairs]
    medians = {
        f"{name}_ms": round(statistics.median(s for one in orders for s in one[name]) * 1e3, 2)
        for name in ("before", "now")
    }
    return {
        "ratio": round(statistics.geometric_mean(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        **medians,
    }


def _take_turns(
    sides: dict[str, Child], context: int, turns: int
) -> dict[str, dict[str, list[float]]]:
    samples: dict[str, dict[str, list[float]]] = {
        phase: {name: [] for name in sides} for phase in ("prefill", "decode")
    }
    names = list(sides)
    for turn in range(turns + 1):
        for name in names if turn % 2 else reversed(names):
            time.sleep(PAUSE_S)
            seconds = sides[name].ask(str(context))
            if turn:
                samples["prefill"][name].append(seconds["prefill_s"])
                samples["decode"][name].append(statistics.median(seconds["token_s"]))
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
    print_machine(machine)
    if given.json is not None:
        write_json(given.json, {"depth": given.depth, "machine": machine, **figures})


if __name__ == "__main__":
    with one_line_errors():
        main()
