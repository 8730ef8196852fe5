"""Training speed and memory: our form against the plain one, in turn, each in its own process.

python -m bench.train                              the demo's checkpoint and settings, its passages
python -m bench.train CHECKPOINT --data FILE       another one
python -m bench.train --teacher SOURCE             with the original as a teacher
python -m bench.train --compile                    ours compiled as well

Plain: every weight in the graph, all logits in float32, prelude and teacher run at every train
step. Ours: states of prelude and teacher read from disk, no gradients for what is frozen, logits in
pieces; once more with steps and last layers computed twice, and both again compiled: that takes a
minute of the first train step, which does not count. What is updated and how is the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
import typing
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.measure import PACKAGES, Child, make_parser, print_machine
from bench.train_form import FILL, FORMS, PLAIN, WITH_COMPILER
from cli.errors import CommandError, one_line_errors
from cli.output import require_writable, write_json
from demo import settings
from demo.packages import default_cache
from ouroboros.training.recipe import TrainOptions
from runtime.measure.speed import describe_machine

DEMO = Path("build/demo")
AIMS = {"speed_ratio": ">= 2.5", "memory_ratio": "<= 0.5"}
LOSSES_APART = {"fp32": 5e-4, "bf16": 1e-2}
"""How far the first losses of two forms may lie apart: by rounding alone, that of states which are
kept in float16 among it (5e-5 on SmolLM2)."""


def start_form(form: str, checkpoint: Path, threads: int, given: dict[str, Any]) -> Child:
    """Starts a form of training in another process and waits until it has loaded everything."""
    words = [sys.executable, "-m", "bench.train_form", form, str(checkpoint), str(threads),
             json.dumps(given)]  # fmt: skip
    return Child(words, CommandError(f"the {form} form ended early; see what it printed above"))


def bench_train(
    checkpoint: Path,
    given: dict[str, Any],
    steps: int,
    threads: int,
    forms: Sequence[str] = FORMS,
) -> dict[str, Any]:
    """Takes the same train steps in every form, in turn; one more comes first and does not count.

    Args:
        checkpoint: to train.
        given: options of the run; `state_cache` is where states are kept.
        steps: that are measured.
        threads: of each.
        forms: to measure, the plain one first.

    Raises:
        CommandError: a form fails, or their losses are not the same.
    """
    given = {**given, "train_steps": steps + 1}
    start_form(FILL, checkpoint, threads, given).close()
    taken: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    memory = {}
    with ExitStack() as opened:
        children = {form: start_form(form, checkpoint, threads, given) for form in forms}
        for child in children.values():
            opened.callback(child.close)
        for number in range(steps + 1):
            for form, child in children.items():
                taken[form].append(child.ask(f"step {number}"))
        for form, child in children.items():
            memory[form] = child.ask("memory")
    first = {form: done[0]["loss"] for form, done in taken.items()}
    apart = max(abs(loss - first[PLAIN]) for loss in first.values())
    if not apart <= LOSSES_APART[given["precision"]]:
        raise CommandError(f"the forms' losses lie {apart:.2g} apart: they do not train the same")
    figures = {}
    for form, done in taken.items():
        seconds = sum(one["seconds"] for one in done[1:])
        tokens = sum(one["tokens"] for one in done[1:])
        held = memory[form]
        figures[form] = {
            "tokens_per_s": round(tokens / seconds, 1),
            "loaded_mb": round(held["loaded_bytes"] / 1e6, 1),
            "above_mb": round((held["peak_bytes"] - held["loaded_bytes"]) / 1e6, 1),
        }
    plain = figures[PLAIN]
    for row in figures.values():
        row["speed_ratio"] = round(row["tokens_per_s"] / plain["tokens_per_s"], 3)
        row["memory_ratio"] = round(row["above_mb"] / plain["above_mb"], 3)
    return {"losses_apart": apart, "forms": figures}


def demo_options(data: Sequence[Path], teacher: str, precision: str, cache: str) -> dict[str, Any]:
    """Returns the options of the demo's training with these four."""
    kinds = typing.get_type_hints(TrainOptions)
    taken = {
        name: kinds[name](text)
        for flag, text in settings.TRAIN.items()
        if (name := flag.strip("-").replace("-", "_")) not in ("train_steps", "eval_every")
    }
    own = {"data": [str(one) for one in data], "teacher": teacher, "precision": precision}
    return {**taken, **own, "state_cache": cache}


def print_figures(figures: dict[str, Any]) -> None:
    """Prints a table a precision with what is asked of ours, then the machine."""
    for precision, found in figures["precisions"].items():
        print(f"{precision}   (losses at most {found['losses_apart']:.1e} apart)")
        print(f"  {'':<25} {'tokens/s':>9} {'':>6} {'loaded MB':>10} {'above MB':>9}")
        for form, row in found["forms"].items():
            print(
                f"  {form:<25} {row['tokens_per_s']:>9} {row['speed_ratio']:>6} "
                f"{row['loaded_mb']:>10} {row['above_mb']:>9} {row['memory_ratio']:>6}"
            )
    print(f"asked of ours: speed {AIMS['speed_ratio']}, memory {AIMS['memory_ratio']}")
    print_machine(figures["machine"], f"; {figures['threads']} threads")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints; with `--json` writes the figures too."""
    from runtime.measure.speed import available_cores

    parser = make_parser("bench.train", __doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEMO / "converted")
    parser.add_argument(
        "--data", type=Path, nargs="+", help="training text; default: the demo's passages"
    )
    parser.add_argument("--teacher", default="", help="the original model, to distil from")
    parser.add_argument("--depth", help="like 8 or 1-16; default: the demo's")
    parser.add_argument("--steps", type=int, default=8, help="train steps measured, in each form")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="ours compiled as well")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)
    data = given.data or [default_cache() / "demo" / "text" / "train.jsonl"]
    for path in (given.checkpoint, *data):
        if not path.exists():
            sys.exit(f"error: {path} is not there; run `make demo` first, or name another")
    require_writable(given.json, [given.checkpoint, *data])
    forms = (*FORMS, *WITH_COMPILER) if given.compile else FORMS
    precisions = {}
    with tempfile.TemporaryDirectory(prefix="ouro-bench-") as cache:
        for precision in given.precision:
            options = demo_options(data, given.teacher, precision, cache)
            if given.depth:
                options["depth"] = given.depth
            precisions[precision] = bench_train(
                given.checkpoint, options, given.steps, given.threads, forms
            )
    figures = {
        "checkpoint": given.checkpoint.name,
        "teacher": bool(given.teacher),
        "depth": given.depth or settings.TRAIN["--depth"],
        "threads": given.threads,
        "steps": given.steps,
        "precisions": precisions,
        "machine": describe_machine(PACKAGES),
    }
    print_figures(figures)
    if given.json is not None:
        write_json(given.json, figures)


if __name__ == "__main__":
    with one_line_errors():
        main()
