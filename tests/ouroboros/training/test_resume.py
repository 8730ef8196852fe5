"""Runs that stopped or were killed, and went on: the same bits as of one left alone."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from ouroboros.training.run import train
from ouroboros.training.trainer import OuroborosTrainer
from tests.support.forked import fork
from tests.support.training import PulledPlug, options, same_bits, write_teacher


def test_resuming_a_finished_run_publishes_it_again(
    corpus: Path,
    checkpoint: Path,
) -> None:
    out = corpus.parent / "trained"
    train(checkpoint, out, options(corpus))
    before = (out / "model.safetensors").read_bytes()
    (out / "config.json").unlink()
    (out / "model.safetensors").unlink()
    report = train(checkpoint, out, options(corpus), resume=True)
    assert report.tokens_per_s == 0
    assert (out / "model.safetensors").read_bytes() == before


def test_a_finished_run_is_scored_at_whatever_depths_are_asked_for(
    corpus: Path, checkpoint: Path
) -> None:
    out = corpus.parent / "trained"
    given = {"eval": (next(corpus.iterdir()),), "eval_windows": 1}
    train(checkpoint, out, options(corpus, eval_depths=(1, 3), **given))
    again = options(corpus, eval_depths=(1, 2, 3), **given)
    report = train(checkpoint, out, again, resume=True)
    assert sorted(report.heldout) == [1, 2, 3]
    assert all(math.isfinite(loss) for loss in report.heldout.values())


DISTILLED = {
    "distill": 0.7,
    "temperature": 2.0,
    "train_coda": "full",
    "train_recurrent": "full",
    "layer_learning_rate": 1e-3,
}


DEEP = {"depth_curriculum": 5, "depth_term": 0.5, "backprop_steps": 2}
ADAPTED = {"train_coda": "lora", "train_recurrent": "lora", "adapter_rank": 3}


@pytest.mark.parametrize(
    "kind",
    [
        "distilled",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("fp32", "bf16", "adapted", "deep")),
    ],
)
def test_resume_is_exact_wherever_it_stopped(
    corpus: Path,
    checkpoint: Path,
    heldout: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Stops in this process before every single train step in turn, scores and saves apart."""
    known: dict[str, dict[str, Any]] = {"adapted": ADAPTED, "deep": DEEP}
    changes = known.get(kind, {"precision": kind})
    if kind == "distilled":
        changes = {
            **DISTILLED,
            "teacher": str(write_teacher(checkpoint, corpus.parent / "whole_model")),
        }
    run = options(
        corpus,
        train_steps=7,
        save_every=2,
        grad_accum=2,
        eval=(heldout,),
        eval_every=3,
        depth="1-6",
        **changes,
    )
    number_event_files_alike(monkeypatch)
    whole, parts = corpus.parent / "whole", corpus.parent / "parts"
    train(checkpoint, whole, run)
    compute_loss = OuroborosTrainer.compute_loss
    stops = iter([1, 2, 5, 3, 9, 4, 14, 6])
    calls = left = 0

    def pull(self: OuroborosTrainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == left:
            raise PulledPlug
        # Whatever ran in between, the random numbers of a run are its own.
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(OuroborosTrainer, "compute_loss", pull)
    while True:
        calls, left = 0, next(stops, 0)
        torch.manual_seed(random.randrange(1000))
        try:
            train(checkpoint, parts, run, resume=True)
        except PulledPlug:
            continue
        break
    assert same_bits(whole, parts)
    histories = [
        [
            {k: v for k, v in entry.items() if "seconds" not in k and "runtime" not in k}
            for entry in json.loads((out / "state/step-7/trainer_state.json").read_text())[
                "log_history"
            ]
        ]
        for out in (whole, parts)
    ]
    assert histories[0] == histories[1]
    assert logged_steps(whole / "logs") == logged_steps(parts / "logs")


def number_event_files_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has TensorBoard number its files with equally many digits.

    Those of one second are read in the order of their names: of one process the tenth before the
    ninth. A run that is killed has another process each time.
    """
    if importlib.util.find_spec("tensorboard") is not None:
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(1000))


def logged_steps(logs: Path) -> list[int]:
    """The train steps of the losses that TensorBoard shows, in order."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    events = accumulator(str(logs)).Reload()
    return [event.step for event in events.Scalars("train/loss")]


def train_on(checkpoint: Path, out: Path, corpus: Path, more: dict[str, str]) -> None:
    run = options(corpus, train_steps=50, save_every=3, grad_accum=2, depth="1-6", **more)
    train(checkpoint, out, run, resume=True)


def wait_for_a_save(process: BaseProcess, out: Path, skipped: int) -> bool:
    """Returns True in the middle of a save, after `skipped` others; False where the run ended."""
    seen = False
    while process.exitcode is None:
        saving = (out / "state" / ".staging").exists()
        if saving and not seen:
            skipped -= 1
            if skipped < 0:
                return True
        seen = saving
        time.sleep(0.0005)  # else it would take a processor from the training
    return False


@pytest.mark.slow
def test_killed_at_random_moments_ends_in_the_same_bits(corpus: Path, checkpoint: Path) -> None:
    """The run left alone and the killed one each fill a cache of kept states of their own."""
    whole, killed = corpus.parent / "whole", corpus.parent / "killed"
    teacher = str(write_teacher(checkpoint, corpus.parent / "teacher"))
    more = {
        out: {"teacher": teacher, "state_cache": str(out.with_suffix(".states"))}
        for out in (whole, killed)
    }
    fork(os.getpid).join()  # loads the libraries: what is timed is a run alone
    began = time.monotonic()
    process = fork(train_on, checkpoint, whole, corpus, more[whole])
    process.join()
    whole_s = time.monotonic() - began
    assert process.exitcode == 0
    generator = random.Random(11)
    kills: list[str] = []
    for _ in range(5):  # on a busy machine a run may end before its moment
        for moment in ("save", "random", "random"):
            process = fork(train_on, checkpoint, killed, corpus, more[killed])
            if moment == "save":
                wait_for_a_save(process, killed, generator.randrange(4))
            else:
                process.join(generator.uniform(0.2, 0.5) * whole_s)
            if process.exitcode is None:
                process.kill()
                kills.append(moment)
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            if kills == ["save"]:  # what is left of it is filled again, and killed meanwhile
                shutil.rmtree(killed.with_suffix(".states"), ignore_errors=True)
        if {"save", "random"} <= set(kills):
            break
        kills.clear()
        shutil.rmtree(killed, ignore_errors=True)
    process = fork(train_on, checkpoint, killed, corpus, more[killed])
    process.join()
    assert process.exitcode == 0
    assert {"save", "random"} <= set(kills)
    assert same_bits(whole, killed)
