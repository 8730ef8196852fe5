"""Kills one training again and again, at random moments, and resumes it: the same bits at the end?

    python -m bench.kills CHECKPOINT --folder build/kills -- --data texts --save-every 3 ...

What follows `--` is handed to `ouro train`. A run that is left alone comes first. With
`--keep-states` both have a state cache of their own, and that of the killed one is emptied before
some of its lives, so that it is killed while the cache is filled too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from ouroboros.training.state import list_steps, train_step_of
from ouroboros.training.state_store import HASHES
from runtime.files.hashing import hash_file

HASH_BYTES = 32
EMPTIED = 5  # every so many lives the state cache is emptied first


def start(checkpoint: Path, out: Path, cache: Path | None, given: Sequence[str]) -> BaseProcess:
    """Starts a training, in a process of its own, that goes on where it was."""
    kept = ["--state-cache", str(cache)] if cache else []
    words = ["ouro", "train", str(checkpoint), str(out), *given, *kept, "--resume"]
    context = multiprocessing.get_context("forkserver")
    # Loaded once: a life then begins with the training, not with its libraries.
    context.set_forkserver_preload(["cli.app", "ouroboros.training.run"])
    process = context.Process(target=_be_ouro, args=(words, out.with_suffix(".log")))
    process.start()
    return process


def _be_ouro(words: list[str], log: Path) -> None:
    from cli.main import main

    sys.argv = words
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        main()


def finish(process: BaseProcess) -> None:
    """Waits for a training's end.

    Raises:
        RuntimeError: it failed.
    """
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a training failed (exit status {process.exitcode}); see its .log")


def fingerprint(out: Path) -> str:
    """The hash of what a training ends with: its weights, and the optimizer of its last state."""
    newest = list_steps(out / "state")[0]
    files = [out / "model.safetensors", *sorted(newest.glob("*.safetensors"))]
    files += sorted(newest.glob("optimizer.*"))
    return hashlib.sha256("".join(hash_file(file) for file in files).encode()).hexdigest()


def describe_moment(out: Path, lacking: bool) -> str:
    """What a training was doing when it was killed, by what it left behind.

    Args:
        out: of the training.
        lacking: whether its state cache lacks something.
    """
    if lacking:
        return "before the cache was full"
    if (out / "state" / ".staging").exists():
        return "saving a state"
    return "training" if list_steps(out / "state") else "before its first state"


def count_states(cache: Path) -> int:
    """How many windows' states are kept: places with a hash in them."""
    files = [np.fromfile(file, dtype=np.uint8) for file in cache.glob(f"*/{HASHES}")]
    return sum(int(one.reshape(-1, HASH_BYTES).any(1).sum()) for one in files)


def kill_again_and_again(
    checkpoint: Path, folder: Path, kills: int, keep: bool, seed: int, given: Sequence[str]
) -> dict[str, object]:
    """Does what the module says; returns the figures.

    A training that ends before there were enough kills is compared, and another begins.
    """
    cache, filled = (folder / name if keep else None for name in ("states", "whole-states"))
    began = time.monotonic()
    finish(start(checkpoint, folder / "whole", filled, given))
    seconds = time.monotonic() - began
    expected = fingerprint(folder / "whole")
    print(f"left alone: {seconds:.1f} s, {expected[:16]}", flush=True)
    generator, moments = random.Random(seed), Counter[str]()
    done = same = ended = 0
    out = folder / "killed-0"
    while done < kills:
        if cache and done % EMPTIED == EMPTIED - 1:
            shutil.rmtree(cache, ignore_errors=True)
        # Often short, and now and then long enough for steps forward.
        life = generator.uniform(0.0, seconds * generator.choice((0.05, 0.2, 0.4)))
        process = start(checkpoint, out, cache, given)
        process.join(life)
        if process.exitcode is None:
            process.kill()
            process.join()
            done += 1
            lacking = cache and filled and count_states(cache) < count_states(filled)
            moments[describe_moment(out, bool(lacking))] += 1
            print(f"kill {done} after {life:.1f} s, {_newest(out)}", flush=True)
        else:
            finish(process)
            same, ended = same + (fingerprint(out) == expected), ended + 1
            out = folder / f"killed-{ended}"
    finish(start(checkpoint, out, cache, given))
    same, ended = same + (fingerprint(out) == expected), ended + 1
    return {"kills": done, "moments": dict(moments), "trainings": ended, "same_bits": same}


def _newest(out: Path) -> str:
    steps = list_steps(out / "state")
    return f"state of train step {train_step_of(steps[0])}" if steps else "no state yet"


def main() -> int:
    """Runs; returns 0 where every training ended in the same bits."""
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="a new one, for everything")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--keep-states", action="store_true", help="with --state-cache")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    asked, given = parser.parse_args(words[:end]), words[end + 1 :]
    asked.folder.mkdir(parents=True)
    found = kill_again_and_again(
        asked.checkpoint, asked.folder, asked.kills, asked.keep_states, asked.seed, given
    )
    print(json.dumps(found))
    return 0 if found["same_bits"] == found["trainings"] else 1


if __name__ == "__main__":
    sys.exit(main())
