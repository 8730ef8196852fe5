"""What a run makes of kept states: the same training, resumed exactly; options of theirs."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ouroboros.checkpoint import load_checkpoint
from ouroboros.errors import TrainingError
from ouroboros.training import frozen_states
from ouroboros.training.frozen_states import (
    PRELUDE,
    TEACHER,
    state_folder,
)
from ouroboros.training.run import train
from ouroboros.training.state import list_steps
from ouroboros.training.trainer import OuroborosTrainer
from tests.support.training import (
    PulledPlug,
    options,
    same_bits,
)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(out)[0].state_dict()


def run_and_read(checkpoint: Path, out: Path, run: Any, **arguments: Any) -> str:
    """Trains, and returns all that was shown."""
    console = Console(file=io.StringIO(), width=300, record=True)
    train(checkpoint, out, run, console=console, **arguments)
    return console.export_text()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_run_with_kept_states_ends_as_one_without(
    corpus: Path, checkpoint: Path, kept: Path, teacher: str, precision: str
) -> None:
    """Apart by how the states are kept: float32 not at all, float16 by its rounding."""
    common = {"train_coda": "full", "teacher": teacher, "precision": precision}
    train(checkpoint, corpus.parent / "plain", options(corpus, **common))
    plain = weights(corpus.parent / "plain")
    start = weights(checkpoint)
    apart = {}
    for dtype in ("float32", "float16"):
        run = options(corpus, **common, state_cache=str(kept), state_dtype=dtype)
        train(checkpoint, corpus.parent / dtype, run)
        found = weights(corpus.parent / dtype)
        moved = sum(float((plain[name] - start[name]).norm()) for name in plain)
        apart[dtype] = sum(float((found[name] - plain[name]).norm()) for name in plain) / moved
    # float32: windows computed alone and in a batch may differ in their last bits.
    assert apart["float32"] < (1e-4 if precision == "fp32" else 0.05)
    assert 0 < apart["float16"] < (1e-2 if precision == "fp32" else 0.05)


@pytest.mark.slow
def test_fingerprint_says_which_states_were_read(
    corpus: Path, checkpoint: Path, kept: Path, teacher: str
) -> None:
    out = corpus.parent / "out"
    run = options(corpus, teacher=teacher, state_cache=str(kept))
    train(checkpoint, out, run)
    saved = json.loads((list_steps(out / "state")[0] / "options.json").read_text())
    assert saved["states"] == {PRELUDE: "float16", TEACHER: "float16"}
    plain = options(corpus, teacher=teacher)
    with pytest.raises(TrainingError, match=r"states was .*float16.*, now None; give the old ones"):
        train(checkpoint, out, plain, resume=True)
    wide = options(corpus, teacher=teacher, state_cache=str(kept), state_dtype="float32")
    with pytest.raises(TrainingError, match=r"states was .*float16.*, now .*float32"):
        train(checkpoint, out, wide, resume=True)
    # Elsewhere they are computed again: the same ones here, so nobody is warned.
    moved = options(corpus, teacher=teacher, state_cache=str(corpus.parent / "elsewhere"))
    assert "kept states are not those" not in run_and_read(checkpoint, out, moved, resume=True)


def test_resume_is_exact_with_kept_states(
    corpus: Path,
    checkpoint: Path,
    kept: Path,
    teacher: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the middle of computing states and of training; the states are lost once."""
    run = options(
        corpus, train_steps=6, save_every=2, teacher=teacher, state_cache=str(kept), depth="1-6"
    )
    whole, parts = corpus.parent / "whole", corpus.parent / "parts"
    train(checkpoint, whole, run)
    shutil.rmtree(kept)
    write, compute_loss = frozen_states.StateStore.write, OuroborosTrainer.compute_loss
    calls = 0

    def stop_after(count: int, work: Any) -> Any:
        def work_or_stop(*given: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > count:
                raise PulledPlug
            return work(*given, **more)

        return work_or_stop

    for owner, name, work, count in (
        (frozen_states.StateStore, "write", write, 5),
        (frozen_states.StateStore, "write", write, 9),
        (OuroborosTrainer, "compute_loss", compute_loss, 3),
    ):
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop_after(count, work))
            with pytest.raises(PulledPlug):
                train(checkpoint, parts, run, resume=True)
    shutil.rmtree(kept)
    train(checkpoint, parts, run, resume=True)
    assert same_bits(whole, parts)


def test_default_folder_is_that_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OURO_CACHE", raising=False)
    assert state_folder("auto") == Path.home() / ".cache" / "ouroboros" / "states"
    monkeypatch.setenv("OURO_CACHE", "/cache")
    assert state_folder("auto") == Path("/cache/states")
    assert state_folder("here") == Path("here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dtype": "bfloat16", "state_cache": "x"}, "state_dtype='bfloat16' is unknown"),
        ({"state_dtype": "float32"}, "state_dtype=float32 is of kept states, and none are kept"),
        ({"state_cache_gb": 3.0}, "state_cache_gb=3.0 is of kept states"),
        ({"state_cache_gb": 0.0, "state_cache": "x"}, "state_cache_gb=0.0 is not allowed"),
    ],
)
def test_bad_option_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        options(Path("x"), **changes)
