"""Trainings in two processes, one after the other in one launch.

Two processes take longer to start, and to load their libraries, than to train a tiny model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

# What follows a program that has imported `run` and changed of it what a test wants to see. It may
# read `out`. One run's environment is not the next one's: accelerate leaves its choices there.
LOOP = """
import json, os, sys
from pathlib import Path
from tests.support.training import options

environment = dict(os.environ)
for given in json.loads(Path(sys.argv[1]).read_text()):
    os.environ.clear()
    os.environ.update(environment)
    checkpoint, out, corpus = (Path(given[name]) for name in ("checkpoint", "out", "corpus"))
    run.train(checkpoint, out, options(corpus, **given["options"]), resume=True)
    out.with_suffix(".done" + os.environ["RANK"]).touch()
"""


@dataclass(frozen=True)
class Training:
    """A run of two processes: `out` is where it goes, `options` what it is told."""

    checkpoint: Path
    out: Path
    corpus: Path
    options: dict[str, Any]


@dataclass(frozen=True)
class Launched:
    """How a launch ended: its status, the end of what it said, and the trainings it was of."""

    status: int
    said: str
    trainings: Sequence[Training]

    def finished(self, out: Path) -> Path:
        """The folder of a training that both processes finished; fails where one did not."""
        assert is_finished(out), f"{out.name} was not finished: {self.said}"
        if all(is_finished(one.out) for one in self.trainings):
            assert self.status == 0, self.said
        return out


def is_finished(out: Path) -> bool:
    return all(out.with_suffix(f".done{rank}").exists() for rank in "01")


def launch(starter: Sequence[str | Path], program: str, trainings: Sequence[Training]) -> Launched:
    """Runs trainings in two processes; `starter` is a module that starts these, and its options."""
    first = trainings[0].out
    script, asked = first.with_suffix(".py"), first.with_suffix(".json")
    script.write_text(program + LOOP)
    asked.write_text(json.dumps([vars(one) for one in trainings], default=str))
    done = subprocess.run(
        [sys.executable, "-m", *map(str, (*starter, script, asked))],
        timeout=500, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    return Launched(done.returncode, done.stderr[-3000:], trainings)
