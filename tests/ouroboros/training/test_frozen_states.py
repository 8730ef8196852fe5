"""Prelude and teacher computed once: what is kept, shared between runs, and refused."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ouroboros.checkpoint import load_checkpoint
from ouroboros.errors import TrainingError
from ouroboros.model.prelude import run_prelude
from ouroboros.text.windows import load_windows
from ouroboros.training import frozen_states
from ouroboros.training.frozen_states import (
    PRELUDE,
    TEACHER,
    open_states,
)
from ouroboros.training.order import run_order
from ouroboros.training.run import train
from ouroboros.training.state_store import STATES, STRETCH
from ouroboros.training.teacher import load_teacher
from tests.support.forked import fork_with_pipe
from tests.support.training import (
    options,
    tiny_model,
    tiny_tokenizer,
)


def test_states_are_those_of_prelude_and_teacher(
    corpus: Path, checkpoint: Path, kept: Path, teacher: str
) -> None:
    """Of the windows that are drawn, and of no other."""
    model, tokenizer = load_checkpoint(checkpoint)
    windows = load_windows([corpus], tokenizer, 16)
    run = options(corpus, teacher=teacher, state_cache=str(kept), state_dtype="float32")
    drawn = set(run_order(run, len(windows), 1))
    assert len(drawn) == 8 < len(windows)
    with ExitStack() as opened:
        states = open_states(
            model,
            model.lm_head.weight,
            windows,
            drawn,
            run,
            torch.device("cpu"),
            0,
            lambda line: None,
            opened,
        )
        assert len(states) == len(windows)
        whole = load_teacher(teacher, model.lm_head.weight)
        for index in range(len(windows)):
            held = {name: store.holds(index) for name, store in states.stores.items()}
            assert held == {PRELUDE: index in drawn, TEACHER: index in drawn}
            if index not in drawn:
                continue
            window = states[index]
            ids, positions = (
                torch.from_numpy(window[name])[None] for name in ("input_ids", "position_ids")
            )
            assert np.array_equal(window[PRELUDE], run_prelude(model, ids, positions)[0].numpy())
            assert np.array_equal(window[TEACHER], whole.final_state(ids, positions)[0].numpy())
            assert set(window) == {"input_ids", "position_ids", "labels", PRELUDE, TEACHER}


class Filled:
    """Opens the states of runs, and says how many windows prelude and teacher computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.computed: list[str] = []
        for name in ("_prelude_of", "_teacher_of"):
            monkeypatch.setattr(frozen_states, name, self.noting(name))

    def noting(self, name: str) -> Any:
        prepare = getattr(frozen_states, name)

        def prepare_and_note(*given: Any) -> Any:
            compute = prepare(*given)

            def compute_and_note(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
                self.computed.extend([name] * len(ids))
                return compute(ids, positions)

            return compute_and_note

        return prepare_and_note

    def __call__(self, model: Any, run: Any) -> tuple[int, int]:
        self.computed.clear()
        self.lines.clear()
        windows = load_windows(run.data, tiny_tokenizer(), run.seq_len)
        drawn, device = run_order(run, len(windows), 1), torch.device("cpu")
        with ExitStack() as opened:
            open_states(
                model,
                model.lm_head.weight,
                windows,
                drawn,
                run,
                device,
                0,
                self.lines.append,
                opened,
            )
        return self.computed.count("_prelude_of"), self.computed.count("_teacher_of")


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Filled:
    return Filled(monkeypatch)


def test_states_are_computed_once_and_shared(
    corpus: Path, checkpoint: Path, kept: Path, teacher: str, fill: Filled
) -> None:
    model, _ = load_checkpoint(checkpoint)
    windows = len(load_windows([corpus], tiny_tokenizer(), 16))
    common: dict[str, Any] = {"teacher": teacher, "state_cache": str(kept)}

    def count(**changes: Any) -> tuple[int, int]:
        return fill(model, options(corpus, **{**common, **changes}))

    assert count() == (8, 8)
    assert count() == (0, 0)
    assert count(learning_rate=1e-3, train_coda="full", depth="2", save_every=7) == (0, 0)
    assert count(teacher="") == (0, 0)
    # Two more windows are drawn in ten train steps of one.
    assert count(train_steps=10, batch_size=1) == (2, 2)
    assert count(train_steps=3 * windows) == (windows - 10, windows - 10)
    assert count(seed=5) == (0, 0)
    # Of other precision, length, weights or data nothing is read.
    assert count(precision="bf16") == (8, 8)
    assert count(state_dtype="float32") == (8, 8)
    assert count(seq_len=8) == (8, 8)
    with torch.no_grad():
        model.coda[0].mlp.up_proj.weight[0, 0] += 1e-3
        model.recurrent.norm.weight[0, 0] += 1e-3
    assert count() == (0, 0)
    with torch.no_grad():
        model.prelude[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert count() == (8, 0)
    other = shutil.copytree(teacher, corpus.parent / "other teacher")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-3}))
    assert count(teacher=str(other)) == (0, 8)
    (corpus / "00.txt").write_text("the dog " * 30)
    assert count() == (8, 8)


def test_teacher_with_another_head_is_refused_though_its_states_are_there(
    corpus: Path, checkpoint: Path, kept: Path, teacher: str, fill: Filled
) -> None:
    model, _ = load_checkpoint(checkpoint)
    run = options(corpus, teacher=teacher, state_cache=str(kept))
    assert fill(model, run) == (8, 8)
    with torch.no_grad():
        model.embed_tokens.weight[3] *= 2
    with pytest.raises(TrainingError, match=r"teacher has another LM head .* --state-cache"):
        fill(model, run)


def test_damaged_states_are_named_and_computed_anew(
    corpus: Path, checkpoint: Path, kept: Path, fill: Filled
) -> None:
    model, _ = load_checkpoint(checkpoint)
    run = options(corpus, state_cache=str(kept))
    fill(model, run)
    assert fill.lines == ["prelude states: computed 8 of 8 windows"]
    (store,) = kept.iterdir()
    whole = (store / STATES).read_bytes()
    content = bytearray(whole)
    place = next(number for number, byte in enumerate(content) if byte)
    content[place] ^= 255
    (store / STATES).write_bytes(content)
    assert fill(model, run) == (1, 0)
    assert fill.lines == [
        f"1 states in {store} were damaged and are computed anew",
        "prelude states: computed 1 of 8 windows",
    ]
    assert (store / STATES).read_bytes() == whole


def test_state_beyond_float16_is_refused(corpus: Path, kept: Path, fill: Filled) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.prelude[1].mlp.down_proj.weight *= 1e9
    run = options(corpus, state_cache=str(kept))
    with pytest.raises(
        TrainingError, match=r"prelude states: .* reaches .*e\+\d\d, which float16 .* float32"
    ):
        fill(model, run)
    assert fill(model, options(corpus, state_cache=str(kept), state_dtype="float32")) == (8, 0)


def test_states_have_no_more_room_than_given(
    corpus: Path, checkpoint: Path, kept: Path, fill: Filled
) -> None:
    # 8 windows of 16 tokens of 32 numbers of 2 bytes.
    model, _ = load_checkpoint(checkpoint)
    with pytest.raises(TrainingError, match=r"of this run need 0\.00 GB more in .*kept.*-gb"):
        fill(model, options(corpus, state_cache=str(kept), state_cache_gb=8191e-9))
    assert fill.computed == []


def fill_slowly(pipe: Connection, checkpoint: Path, out: Path, corpus: Path, kept: Path) -> None:
    """A run that says so before each window that it computes, and waits for an answer then."""
    compute = frozen_states._prelude_of

    def slowly(*given: Any) -> Any:
        work = compute(*given)

        def one(ids: Any, positions: Any) -> Any:
            pipe.send("window")
            pipe.recv()
            return work(ids, positions)

        return one

    frozen_states._prelude_of = slowly
    train(checkpoint, out, options(corpus, state_cache=str(kept)))


def start(checkpoint: Path, corpus: Path, kept: Path) -> tuple[BaseProcess, Connection]:
    return fork_with_pipe(fill_slowly, checkpoint, corpus.parent / "x", corpus, kept)


@pytest.mark.slow
def test_killed_computation_goes_on(
    corpus: Path, checkpoint: Path, kept: Path, fill: Filled
) -> None:
    process, pipe = start(checkpoint, corpus, kept)
    for _ in range(4):
        assert pipe.recv() == "window"
        pipe.send("go on")
    assert pipe.recv() == "window"
    process.kill()
    process.join()
    model, _ = load_checkpoint(checkpoint)
    assert fill(model, options(corpus, state_cache=str(kept))) == (4, 0)


@pytest.mark.slow
def test_two_runs_share_the_work(corpus: Path, checkpoint: Path, kept: Path, fill: Filled) -> None:
    """One waits for the stretch that the other has, and then reads it."""
    model, _ = load_checkpoint(checkpoint)
    windows = len(load_windows([corpus], tiny_tokenizer(), 16))
    drawn = set(run_order(options(corpus), windows, 1))
    in_first = {index for index in drawn if index // STRETCH == min(drawn) // STRETCH}
    other, pipe = start(checkpoint, corpus, kept)
    assert pipe.recv() == "window"
    waited: list[float] = []

    def let_go(seconds: float) -> None:
        waited.append(seconds)
        for _ in range(8):
            pipe.send("go on")
        other.join()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_states.time, "sleep", let_go)
        own, _ = fill(model, options(corpus, state_cache=str(kept)))
    # What is in the other stretch, in which nobody was.
    assert own == len(drawn - in_first) < 8
    assert len(waited) == 1
    assert other.exitcode == 0
