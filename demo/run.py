"""The whole chain on a real model: fetch, convert, train, eval, export, generate, check, bench.

Beside it a model that lies ready, which was trained for longer. Leaves everything in build/demo/,
with report.json; a part that is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from demo import settings
from demo.fetch import FetchError, Material, fetch
from demo.mixture import Mixture, mix_texts
from demo.report import collect_report, summarise_report
from demo.stages import ROOT, DemoError, Stages, call, flags, say_heading, source_hash
from runtime.files.hashing import hash_file

FOLDER = ROOT / "build" / "demo"
LEAVES = ("runtime/depths.py", "runtime/errors.py", "runtime/files", "runtime/options.py")
CORE = ("ouroboros", "ouroboros/calibration.txt", *LEAVES)
"""What a conversion or training depends on; the commands of `cli` pass options on, no more."""


def run_demo(folder: Path = FOLDER) -> None:
    """Runs every stage that is not finished, writes report.json and prints the summary.

    Args:
        folder: where everything is left.

    Raises:
        FetchError: the model or a text can't be had.
        DemoError: a stage failed.
    """
    stages = Stages.open(folder)
    say_heading("1/9 fetch: the model and the texts")
    began = time.perf_counter()
    material = fetch()
    mixture = mix_texts(folder / "texts", material, settings.SOURCES, settings.CHARACTERS)
    stages.done.setdefault("fetch", {"seconds": round(time.perf_counter() - began, 2)})
    _build_model(stages, material, mixture)
    _judge_model(stages, material)
    _show_ready(stages, material)
    report = collect_report(folder, stages.seconds)
    content = json.dumps(report, indent=2) + "\n"
    (folder / "report.json").write_text(content, encoding="utf-8")
    say_heading("summary")
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    print(summarise_report(report, str(shown)))


def _build_model(stages: Stages, material: Material, mixture: Mixture) -> None:
    """Fetched model to bundle."""
    folder = stages.folder
    converted, trained, bundle = (folder / name for name in ("converted", "trained", "bundle"))
    core = source_hash(*CORE)
    stages.run(
        "convert",
        f"2/9 convert: {settings.LAYERS} layers become {settings.PRELUDE}, one looped, and "
        f"{settings.CODA}",
        lambda _: call("ouro", "convert", material.model, converted, *flags(settings.CONVERT)),
        inputs=[material.sha256, settings.CONVERT, core],
        outputs=["converted"],
    )

    def train(interrupted: bool) -> None:
        files: list[str | Path] = ["--data", mixture.train, "--eval", mixture.like]
        files += ["--teacher", material.model]
        resume = ["--resume"] if interrupted and any((trained / "state").glob("*")) else []
        call("ouro", "train", converted, trained, *files, *flags(settings.TRAIN), *resume)

    stages.run(
        "train",
        "3/9 train: a few minutes on prose, papers and code, a depth drawn for every batch",
        train,
        inputs=[stages.done["convert"], mixture.sha256, settings.TRAIN, core],
        outputs=["trained"],
    )
    stages.run(
        "eval",
        "4/9 eval: texts of four kinds that nothing was trained on",
        lambda _: _evaluate(folder, material),
        inputs=[stages.done["train"], settings.EVAL, settings.DEPTHS, settings.DEPTH],
        outputs=["eval.json", "depths.json"],
    )
    stages.run(
        "export",
        "5/9 export: one graph for every depth",
        lambda _: call("ouro", "export", trained, bundle, "--max-depth", str(settings.MAX_DEPTH)),
        inputs=[stages.done["train"], settings.MAX_DEPTH, source_hash("export", "runtime")],
        outputs=["bundle"],
    )


def _judge_model(stages: Stages, material: Material) -> None:
    """Text, parity and speed of the bundle."""
    folder = stages.folder
    trained, bundle = folder / "trained", folder / "bundle"
    engine = source_hash("runtime", "demo")

    def generate(_: bool) -> None:
        shown = {"depth": settings.DEPTH, "max-new-tokens": settings.SHOWN_TOKENS}
        options = {
            f"--{name.replace('_', '-')}": str(value)
            for name, value in (shown | settings.SHOWN_SAMPLING).items()
        }
        call("ouro", "run", bundle, settings.SHOWN_PROMPT, *flags(options))
        call("python", "-m", "demo.tokens", bundle, trained, "--json", folder / "tokens.json")

    stages.run(
        "generate",
        "6/9 generate: the same weights at several depths, engine against PyTorch",
        generate,
        inputs=[stages.done["export"], settings.PROMPTS, settings.DEPTHS, engine],
        outputs=["tokens.json"],
    )
    report: list[str | Path] = ["--json", folder / "parity.json", "--plot", folder / "parity.png"]
    stages.run(
        "check",
        "7/9 check: does the engine compute what PyTorch computed?",
        lambda _: call("ouro", "check", bundle, *report),
        inputs=[stages.done["export"], source_hash("runtime")],
        outputs=["parity.json", "parity.png"],
    )
    stages.run(
        "bench",
        "8/9 bench: how fast is it?",
        lambda _: call(
            "python", "-m", "bench.decode", bundle, trained, "--json", folder / "bench.json"
        ),
        inputs=[stages.done["export"], source_hash("runtime", "bench"), settings.DEPTH],
        outputs=["bench.json"],
    )


def _show_ready(stages: Stages, material: Material) -> None:
    """The model that lies ready in the repository: put together, scored, compiled, tried."""
    folder = stages.folder
    delta, ready, bundle = ROOT / settings.READY, folder / "ready", folder / "ready-bundle"

    def show(_: bool) -> None:
        call("ouro", "restore", delta, ready, "--source", material.model)
        depths = ",".join(map(str, settings.DEPTHS))
        scores: list[str | Path] = ["--depth", depths, "--json", folder / "ready-eval.json"]
        call("ouro", "eval", ready, *_heldout(material), *scores)
        call("ouro", "export", ready, bundle, "--max-depth", str(settings.MAX_DEPTH))
        call("python", "-m", "demo.samples", bundle, "--json", folder / "ready.json")

    record = hash_file(delta / "delta.json")
    everything = source_hash(*CORE, "export", "runtime", "demo")
    stages.run(
        "ready",
        "9/9 ready: the same, trained for hours, out of the repository",
        show,
        inputs=[material.sha256, record, settings.EVAL, settings.DEPTHS, everything],
        outputs=["ready", "ready-eval.json", "ready-bundle", "ready.json"],
    )


def _heldout(material: Material) -> list[str | Path]:
    """The options that name and size the held-out text."""
    options: list[str | Path] = [*flags(settings.EVAL)]
    for path in material.heldout.values():
        options += ["--text", path]
    return options


def _evaluate(folder: Path, material: Material) -> None:
    options = _heldout(material)
    trained = folder / "trained"
    others: list[str | Path] = ["--original", material.model, "--converted", folder / "converted"]
    depth: list[str | Path] = ["--depth", str(settings.DEPTH), "--json", folder / "eval.json"]
    call("ouro", "eval", trained, *options, *others, *depth)
    rest = ",".join(str(depth) for depth in settings.DEPTHS if depth != settings.DEPTH)
    call("ouro", "eval", trained, *options, "--depth", rest, "--json", folder / "depths.json")


def main() -> int:
    """Runs the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__)
    parser.parse_args()
    try:
        run_demo()
    except (DemoError, FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; give the same command to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
