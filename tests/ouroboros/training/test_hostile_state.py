"""States that were changed and hashed anew: nothing of them is run, and none goes on otherwise."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ouroboros.errors import TrainingError
from ouroboros.training.run import train
from ouroboros.training.state import HASHES, PROGRESS, WEIGHTS, list_steps
from runtime.files.hashing import hash_file
from tests.support.training import options


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('a pickle of a stranger was run')",))


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def reshape(folder: Path) -> None:
    """A tensor of one number, which PyTorch would spread over the whole parameter."""
    tensors = load_file(folder / WEIGHTS)
    name = min(tensors)
    tensors[name] = tensors[name].reshape(-1)[:1].clone()
    save_file(tensors, folder / WEIGHTS)


EDITS: list[tuple[Callable[[Path], object], str]] = [
    *((without(name), f"lacks {name[:9]}") for name in (WEIGHTS, PROGRESS, "scheduler.pt")),
    (without("optimizer.pt"), r"lacks optimizer\.\*; delete"),
    (without("rng_state.pth"), "lacks rng_state.*; delete .* to go on from an older state"),
    *(
        (
            holding(name, pickle.dumps(Bomb(), protocol=2)),
            r"can't be read \(UnpicklingError\); delete",
        )
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    ),
    (holding("optimizer.pt", b"PK\x03\x04"), "can't be read"),
    (holding(WEIGHTS, b""), r"can't be read \(SafetensorError\)"),
    (holding(PROGRESS, b"[]"), "is damaged: it is of train step None"),
    (holding(PROGRESS, b'{"global_step": -7}'), "is damaged: it is of train step -7"),
    (reshape, "holds other parameters than this model trains"),
]


def test_a_changed_state_is_refused(corpus: Path, checkpoint: Path) -> None:
    whole = corpus.parent / "whole"
    asked = options(corpus, train_steps=2, save_every=1)
    train(checkpoint, whole, asked)
    for number, (change, words) in enumerate(EDITS):
        # Each its own: TensorBoard's thread may still write into the last one.
        out = corpus.parent / f"out-{number}"
        shutil.copytree(whole, out)
        newest, oldest = list_steps(out / "state")
        shutil.rmtree(newest)
        change(oldest)
        names = [path.name for path in oldest.iterdir() if path.name != HASHES]
        hashes = {name: hash_file(oldest / name) for name in names}
        (oldest / HASHES).write_text(json.dumps(hashes))
        with pytest.raises(TrainingError, match=words) as caught:
            train(checkpoint, out, asked, resume=True)
        assert "weights_only" not in str(caught.value)
