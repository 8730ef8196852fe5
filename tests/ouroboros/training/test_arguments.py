"""What the Trainer is told: one GPU a process, a resumed run's own pace, what decays."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import TrainingArguments

from ouroboros.checkpoint import save_checkpoint
from ouroboros.errors import TrainingError
from ouroboros.training.arguments import one_device, tensorboard, training_arguments
from ouroboros.training.run import train
from ouroboros.training.state import list_steps, train_step_of
from ouroboros.training.trainer import OuroborosTrainer
from tests.support.training import options, tiny_model, tiny_tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("the cat ran and sat on a mat " * 60)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tiny_model(), tiny_tokenizer(), tmp_path / "converted")
    return tmp_path / "converted"


@pytest.mark.parametrize(("here", "used"), [(0, 0), (1, 1), (4, 1)])
def test_a_process_has_one_gpu(here: int, used: int) -> None:
    found = SimpleNamespace(_n_gpu=here, n_gpu=here)
    assert cast("Any", one_device(cast("TrainingArguments", found)))._n_gpu == used


def test_a_resumed_run_saves_and_scores_as_it_is_told(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    long = {"train_steps": 9, "warmup": 0, "scheduler": "constant"}
    with pytest.MonkeyPatch.context() as patch:
        left = OuroborosTrainer._save_checkpoint

        def stop(self: OuroborosTrainer, *given: Any) -> None:
            left(self, *given)
            raise KeyboardInterrupt

        patch.setattr(OuroborosTrainer, "_save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint, out, options(corpus, **long, save_every=4, eval_every=9))
    assert [train_step_of(one) for one in list_steps(out / "state")] == [4]
    told = options(corpus, **long, save_every=3, eval_every=2, eval=(corpus,))
    report = train(checkpoint, out, told, resume=True)
    assert [train_step_of(one) for one in list_steps(out / "state")] == [9, 6]
    scored = [entry["step"] for entry in report.history if "eval_loss" in entry]
    assert scored == [6, 8, 9]


def test_a_finished_run_is_scored_where_it_was_not(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    train(checkpoint, out, options(corpus))
    report = train(checkpoint, out, options(corpus, eval=(corpus,)), resume=True)
    assert list(report.heldout) == list(options(corpus).scored_depths)
    assert all(map(math.isfinite, report.heldout.values()))


def test_matrices_alone_decay(corpus: Path, tmp_path: Path) -> None:
    given = options(corpus, weight_decay=0.1, train_coda="full")
    model = tiny_model(input_injection="add", bridge="entry")
    model.mark_trainable("full")
    arguments = training_arguments(given, tmp_path / "state")
    windows = cast("Any", [{"input_ids": [0]}])
    trainer = OuroborosTrainer(model, given, windows, {}, tmp_path / "state", {}, [], arguments)
    shapes = {
        group["weight_decay"]: {p.ndim for p in group["params"]}
        for group in trainer.create_optimizer().param_groups
        if group["params"]
    }
    assert shapes[0.1] == {2}
    names = {id(p): name for name, p in model.named_parameters()}
    still = {
        names[id(p)]
        for group in trainer.create_optimizer().param_groups
        for p in group["params"]
        if not group["weight_decay"]
    }
    assert "recurrent.injection.weight" in still
    assert "recurrent.controller.step_embedding.weight" in still


@pytest.fixture
def no_thread_more() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert [one for one in threading.enumerate() if one not in before] == []


@pytest.mark.usefixtures("no_thread_more")
@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("train", RuntimeError("broken")), ("train", KeyboardInterrupt()),
        ("train", OSError("full")), ("add_callback", RuntimeError("broken")),
    ],
)  # fmt: skip
def test_no_thread_of_a_run_that_fails_is_left(
    corpus: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: BaseException,
) -> None:
    def fail(*given: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(OuroborosTrainer, where, fail)
    with pytest.raises((type(error), TrainingError)):
        train(checkpoint, corpus.parent / "trained", options(corpus))


@pytest.mark.usefixtures("no_thread_more")
def test_no_thread_is_left_where_events_can_not_be_written(tmp_path: Path) -> None:
    with contextlib.ExitStack() as opened:
        (events,) = tensorboard(tmp_path / "logs", None, opened)
        writer = cast("Any", events).tb_writer
        writer.add_scalar("loss", 1.0, 1)
        writer.flush()

        def fail() -> None:
            raise OSError("No space left on device")

        record = writer.file_writer.event_writer._async_writer._writer
        record.flush = fail


@pytest.mark.usefixtures("no_thread_more")
def test_scores_that_follow_a_training_stand_beside_the_others(
    corpus: Path, checkpoint: Path
) -> None:
    out = corpus.parent / "trained"
    train(checkpoint, out, options(corpus))
    train(checkpoint, out, options(corpus, eval=(corpus,)), resume=True)
    assert sorted(one.name.partition("-")[0] for one in (out / "state").iterdir()) == ["step"]
    text = b"".join(file.read_bytes() for file in (out / "logs").iterdir())
    assert b"eval/loss" in text
