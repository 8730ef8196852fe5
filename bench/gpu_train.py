"""Trains a recipe on a GPU that is lent for minutes: as many train steps as fit, then the result.

A run that ends by the clock could not be repeated or resumed exactly, so the number of train steps
is chosen beforehand, from a few timed ones.

python -m bench.gpu_train run SOURCE TEXTS HELDOUT WORK --until 1700000000
python -m bench.gpu_train collect WORK OUT

Where a machine goes back when nobody asks for a while, both belong into one call: the weights of a
run that was left alone for half a minute were lost once (study/LOG.md).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from bench.gpu_machine import CLI

RECIPE = Path("recipes/heal.toml")
PROBE_STEPS = 12
PROBE_DEPTH = "5"  # about the mean of what the recipe draws
SPARE = 0.82  # of the time left is planned for; scoring, saving and whatever else runs need some
PART_BYTES = 15 << 20


def run(
    source: Path,
    texts: Path,
    heldout: Path,
    work: Path,
    until: float,
    drawn: int,
    draw_batch: int,
    recipe: Path,
) -> None:
    """Draws text, converts, times a few train steps and trains until about `until`.

    Args:
        source: the original model.
        texts: folder of training texts.
        heldout: folder of held-out texts.
        work: everything is written there.
        until: when to be done, seconds since 1970.
        drawn: tokens to draw from the original itself; 0: none.
        draw_batch: texts drawn together.
        recipe: its `batch_size` is the largest micro-batch tried.
    """
    settings = tomllib.loads(recipe.read_text(encoding="utf-8"))
    work.mkdir(parents=True, exist_ok=True)
    sampled, converted = work / "drawn.jsonl", work / "converted"
    sampling = None
    if drawn:
        sampling = start(
            *("sample", source, sampled, "--tokens", drawn, "--length", 256, "--batch", draw_batch),
            *("--openings", texts),
        )
    call("convert", source, converted, *conversion(texts, work / "calibration.txt"))
    if sampling is not None and sampling.wait() != 0:
        print("drawing text failed; going on without it", flush=True)
    data = ["--data", texts, *(["--data", sampled] if sampled.is_file() else [])]
    held = [part for path in sorted(heldout.glob("*.txt")) for part in ("--eval", path)]
    common: list[object] = ["--recipe", recipe, "--teacher", source]
    found = probe(converted, work, texts, common, settings["batch_size"])
    if found is None and settings.get("compile"):
        print("going on without compiling", flush=True)
        common.append("--no-compile")
        found = probe(converted, work, texts, common, settings["batch_size"])
    if found is None:
        sys.exit("error: not even the smallest micro-batch can be trained")
    batch, accum, tokens_per_s = found
    overhead = 75.0  # reading and tokenising the text, loading, publishing
    left = (until - time.time() - overhead) * SPARE
    a_step = batch * accum * settings["seq_len"]
    steps = max(200, int(left * tokens_per_s / a_step))
    print(f"{tokens_per_s:,.0f} tokens/s: {steps} train steps of {a_step:,} tokens", flush=True)
    call(
        *("train", converted, work / "trained", *common, *data, *held),
        *("--batch-size", batch, "--grad-accum", accum, "--train-steps", steps),
        *("--eval-every", max(1, steps // 10), "--save-every", max(1, steps // 10)),
        *("--eval-depth", "1,4,8,16"),
    )


def conversion(texts: Path, fit: Path) -> list[object]:
    """Arguments of the conversion: the bridge is fitted on a text of several kinds, `fit`."""
    fit.write_text(mix_text(texts), encoding="utf-8")
    return [
        "--calibration",
        fit,
        "--bridge",
        "entry",
        "--recurrent",
        21,
        "--max-depth",
        16,
        "--depth",
        8,
    ]


def mix_text(texts: Path, rounds: int = 60, characters: int = 700) -> str:
    """Takes a piece of a document from every file in turn, so that each kind comes soon.

    Args:
        texts: folder of .jsonl files.
        rounds: documents of each file.
        characters: of a document.
    """
    pieces: list[tuple[int, str]] = []
    for path in sorted(texts.rglob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for number, line in zip(range(rounds), lines, strict=False):
                pieces.append((number, json.loads(line)["text"][:characters]))
    pieces.sort(key=lambda piece: piece[0])
    return "\n\n".join(text for _, text in pieces)


def probe(
    converted: Path, work: Path, texts: Path, common: Sequence[object], largest: int
) -> tuple[int, int, float] | None:
    """Finds the largest micro-batch that fits at the greatest depth, and its speed.

    Returns:
        Windows a micro-batch, micro-batches a train step, and tokens a second; None where none can
        be trained.
    """
    small = next(path for path in sorted(texts.rglob("*.jsonl")) if path.stat().st_size > 1 << 20)
    few = work / "probe.jsonl"
    few.write_text("\n".join(small.read_text("utf-8").splitlines()[:6000]) + "\n", "utf-8")
    for batch, accum in ((largest, 1), (largest // 2, 2), (largest // 4, 4)):
        for depth, steps in (("16", 2), (PROBE_DEPTH, PROBE_STEPS)):
            done = ouro(
                *("train", converted, work / f"probe-{batch}-{depth}", *common, "--data", few),
                *("--batch-size", batch, "--grad-accum", accum, "--depth", depth),
                *("--train-steps", steps, "--warmup", 1, "--save-every", 10_000),
            )
            if done.returncode != 0:
                print(done.stdout[-1500:], done.stderr[-1500:], flush=True)
                break
        else:
            found = re.findall(r"([\d,]+) tokens/s", done.stdout)
            return batch, accum, float(found[-1].replace(",", ""))
        if "out of memory" not in done.stderr:
            return None
    return None


def collect(work: Path, out: Path, part: int, parts: int) -> None:
    """Writes what was trained as bfloat16 in files of at most 15 MiB, with the run's papers.

    Args:
        work: of `run`.
        out: the folder to write.
        part: which share of the files, from 0: so many as may be fetched at once.
        parts: shares in all.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from ouroboros.training.state import WEIGHTS, list_steps

    converted = load_file(work / "converted" / "model.safetensors")
    ended, states = work / "trained" / "model.safetensors", list_steps(work / "trained" / "state")
    if not ended.is_file() and not states:
        sys.exit("error: no state was saved yet")
    trained = {**converted, **load_file(ended if ended.is_file() else states[0] / WEIGHTS)}
    kept = {
        name: tensor
        for name, tensor in trained.items()
        if name.startswith(("recurrent.", "bridge.")) or not torch.equal(tensor, converted[name])
    }
    groups: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in kept.items():
        small = tensor.to(torch.bfloat16)
        if groups[-1] and size + small.nbytes > PART_BYTES:
            groups.append({})
            size = 0
        groups[-1][name] = small
        size += small.nbytes
    out.mkdir(parents=True, exist_ok=True)
    for number, group in enumerate(groups):
        if number % parts == part:
            save_file(group, out / f"trained-{number:02d}-of-{len(groups):02d}.safetensors")
    if part == 0:
        logs = {"heldout": read_history(states[0]) if states else []}
        (out / "history.json").write_text(json.dumps(logs, indent=1) + "\n", encoding="utf-8")
        for file in ("trained/config.json", "trained/training.png", "converted/config.json"):
            if (work / file).is_file():
                (out / file.replace("/", "-")).write_bytes((work / file).read_bytes())


def read_history(state: Path) -> list[object]:
    """What the scored train steps up to a saved state have logged."""
    history = json.loads((state / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry for entry in history if "eval_loss" in entry]


def ouro(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a command of `ouro` and keeps what it says."""
    return subprocess.run(_command(arguments), capture_output=True, text=True, check=False)


def call(*arguments: object) -> None:
    """Runs a command of `ouro`, its output shown; ends this program where it fails."""
    began = time.time()
    if subprocess.run(_command(arguments), check=False).returncode != 0:
        sys.exit(f"error: ouro {arguments[0]} failed")
    print(f"ouro {arguments[0]}: {time.time() - began:.0f} s", flush=True)


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """Starts a command of `ouro` beside this program."""
    return subprocess.Popen(_command(arguments))


def _command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-c", CLI, *map(str, arguments)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the part that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("run")
    for name in ("source", "texts", "heldout", "work"):
        one.add_argument(name, type=Path)
    one.add_argument("--until", type=float, required=True, help="seconds since 1970")
    one.add_argument("--drawn", type=int, default=8_000_000, help="tokens to draw; 0: none")
    one.add_argument("--draw-batch", type=int, default=2048, help="texts drawn together")
    one.add_argument("--recipe", type=Path, default=RECIPE, help="of the training")
    other = parts.add_parser("collect")
    other.add_argument("work", type=Path)
    other.add_argument("out", type=Path)
    other.add_argument("--share", type=int, default=0)
    other.add_argument("--shares", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.part == "run":
        del given.part
        run(**vars(given))
    else:
        collect(given.work, given.out, given.share, given.shares)


if __name__ == "__main__":
    main()
