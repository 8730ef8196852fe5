"""Two processes on the CPU train as one does that takes as many windows a train step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ouroboros.training.run import train
from ouroboros.training.state import list_steps
from tests.support.paths import ROOT
from tests.support.training import options, write_teacher

PROGRAM = """
import json, sys
from pathlib import Path
from ouroboros.training.run import train
from tests.support.training import options

checkpoint, out, corpus = (Path(name) for name in sys.argv[1:4])
train(checkpoint, out, options(corpus, **json.loads(sys.argv[4])))
"""
# `accelerate launch` starts one process where there is no GPU, unless mpirun is there.
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def losses(out: Path) -> list[float]:
    """The training loss of every train step."""
    text = (list_steps(out / "state")[0] / "trainer_state.json").read_text()
    return [entry["loss"] for entry in json.loads(text)["log_history"] if "loss" in entry]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("taught", [False, True])
def test_two_processes_give_the_curve_of_one(
    corpus: Path, checkpoint: Path, tmp_path: Path, taught: bool
) -> None:
    """Documents and so labels lie unevenly in windows: losses are means over tokens of both."""
    common: dict[str, Any] = {"train_steps": 8, "depth": "1-6", "train_coda": "full", "seed": 3}
    common["learning_rate"] = 2e-3  # rounding is not to be blown up by the steps of Adam
    if taught:
        # Both fill one store of states.
        teacher = write_teacher(checkpoint, tmp_path / "teacher")
        common |= {"teacher": str(teacher), "state_cache": str(tmp_path / "kept")}
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = [program, checkpoint, tmp_path / "two", corpus]
    subprocess.run(
        [sys.executable, *LAUNCH, *map(str, arguments),
         json.dumps({**common, "batch_size": 2})],
        check=True, timeout=500, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    train(checkpoint, tmp_path / "one", options(corpus, **common, batch_size=4))
    state = list_steps(tmp_path / "two" / "state")[0]
    assert json.loads((state / "options.json").read_text())["world_size"] == 2
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert len(one) == len(two) == 8
    assert two == pytest.approx(one, abs=1e-4)
    assert max(one) - min(one) > 0.1  # a curve, and not a line that any run gives
