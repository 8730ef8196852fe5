"""Two processes on the CPU train as one does that takes as many windows a train step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ouroboros.checkpoint import load_checkpoint
from ouroboros.errors import TrainingError
from ouroboros.training.run import train
from ouroboros.training.state import list_steps
from tests.support.launched import Launched, Training, launch
from tests.support.training import (
    options,
    same_bits,
    write_checkpoint,
    write_corpus,
    write_teacher,
)

# Each process leaves the hash of what it trained.
PROGRAM = """
import hashlib
from ouroboros.training import run

class Watched(run.OuroborosTrainer):
    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        digest = hashlib.sha256()
        for value in self._trainable().values():
            digest.update(value.detach().numpy().tobytes())
        out.with_suffix("." + os.environ["RANK"]).write_text(digest.hexdigest())
        return result

run.OuroborosTrainer = Watched
"""
# `accelerate launch` starts one process where there is no GPU, unless mpirun is there.
LAUNCH = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")
# Rounding is not to be blown up by the steps of Adam.
COMMON: dict[str, Any] = {
    "train_steps": 8, "depth": "1-6", "train_coda": "full", "seed": 3, "learning_rate": 2e-3,
}  # fmt: skip
RESUMED: dict[str, Any] = {"train_steps": 6, "save_every": 3, "depth": "1-6"}


def losses(out: Path) -> list[float]:
    """The training loss of every train step."""
    text = (list_steps(out / "state")[0] / "trainer_state.json").read_text()
    return [entry["loss"] for entry in json.loads(text)["log_history"] if "loss" in entry]


def digests(out: Path) -> set[str]:
    return {out.with_suffix(f".{rank}").read_text() for rank in "01"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """What two processes trained: a model, one that learns of a teacher, one to be gone on with."""
    folder = tmp_path_factory.mktemp("in_two")
    corpus, checkpoint = write_corpus(folder / "corpus"), write_checkpoint(folder / "converted")
    # Both fill one store of states.
    teacher = write_teacher(checkpoint, folder / "teacher")
    taught = {"teacher": str(teacher), "state_cache": str(folder / "kept")}
    given = {
        "plain": {**COMMON, "batch_size": 2},
        "taught": {**COMMON, **taught, "batch_size": 2},
        "whole": RESUMED,
    }
    trainings = [Training(checkpoint, folder / name, corpus, given[name]) for name in given]
    return launch(LAUNCH, PROGRAM, trainings)


def named(trained: Launched, name: str) -> Training:
    (found,) = (one for one in trained.trainings if one.out.name == name)
    trained.finished(found.out)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("taught", [False, True])
def test_two_processes_give_the_curve_of_one(
    trained: Launched, tmp_path: Path, taught: bool
) -> None:
    """Documents and so labels lie unevenly in windows: losses are means over tokens of both."""
    two = named(trained, "taught" if taught else "plain")
    given = {**two.options, "batch_size": 4}
    if taught:
        given["state_cache"] = str(tmp_path / "kept")
    train(two.checkpoint, tmp_path / "one", options(two.corpus, **given))
    state = list_steps(two.out / "state")[0]
    assert json.loads((state / "options.json").read_text())["world_size"] == 2
    found, one = losses(two.out), losses(tmp_path / "one")
    assert len(one) == len(found) == 8
    assert found == pytest.approx(one, abs=1e-4)
    assert max(one) - min(one) > 0.1  # a curve, and not a line that any run gives


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_one_model(trained: Launched, tmp_path: Path) -> None:
    """torchrun with gloo: both processes end in the same weights, and resume to the same."""
    run = named(trained, "whole")
    whole, checkpoint, corpus = run.out, run.checkpoint, run.corpus
    assert len(digests(whole)) == 1
    model = load_checkpoint(whole)[0]
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    start = load_checkpoint(checkpoint)[0].state_dict()
    assert not torch.equal(start["recurrent.norm.weight"], model.recurrent.norm.weight)
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "state" / "step-6")
    (parts / "model.safetensors").unlink()
    # In a launch of its own: nothing is left of the processes that trained the first half.
    launch(LAUNCH, PROGRAM, [Training(checkpoint, parts, corpus, RESUMED)]).finished(parts)
    assert digests(parts) == digests(whole)
    assert same_bits(whole, parts)
    with pytest.raises(TrainingError, match="world_size was 2, now 1"):
        train(checkpoint, parts, options(corpus, train_steps=6, depth="1-6"), resume=True)
