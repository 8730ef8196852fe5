"""Training a looped block of layers, and going on from a state written when there was one layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ouroboros.checkpoint import load_checkpoint, save_checkpoint
from ouroboros.training.run import train
from ouroboros.training.state import HASHES, WEIGHTS, find_problem
from runtime.files.hashing import hash_file
from tests.support.tiny import name_as_before
from tests.support.training import options, tiny_model, tiny_tokenizer


def test_every_layer_of_a_block_trains(corpus: Path, tmp_path: Path) -> None:
    """Its heads learn too: what a step's modulation does to either layer reaches them."""
    start = tiny_model(recurrent=2, recurrent_layers=2, prelude=1, coda=1)
    save_checkpoint(start, tiny_tokenizer(), tmp_path / "block", {"LICENSE": b"free"})
    run = options(corpus, train_recurrent="full", layer_learning_rate=1e-3)
    train(tmp_path / "block", tmp_path / "out", run)
    before, after = start.state_dict(), load_checkpoint(tmp_path / "out")[0].state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    for place in (0, 1):
        own = {name for name in after if name.startswith(f"recurrent.layers.{place}.")}
        bases = {name for name in own if "lora_" in name}
        assert own & changed == own - bases
    heads = "recurrent.controller.heads.weight"
    moved = (after[heads] - before[heads]).abs().reshape(2, 7 * 4, -1).amax((1, 2))
    assert bool((moved > 0).all())
    assert not any(name.startswith(("prelude.", "coda.", "embed_tokens.")) for name in changed)


@pytest.mark.slow
def test_state_with_the_names_of_before_is_gone_on_from(corpus: Path, checkpoint: Path) -> None:
    changes = {"train_recurrent": "full", "layer_learning_rate": 1e-3, "save_every": 2}
    whole, parts = corpus.parent / "whole", corpus.parent / "parts"
    train(checkpoint, whole, options(corpus, **changes))
    train(checkpoint, parts, options(corpus, **changes))
    newest, state = parts / "state" / "step-4", parts / "state" / "step-2"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    name_as_before(state / WEIGHTS)
    hashes = json.loads((state / HASHES).read_text())
    (state / HASHES).write_text(json.dumps({**hashes, WEIGHTS: hash_file(state / WEIGHTS)}))
    assert find_problem(state) is None
    assert "recurrent.layer.mlp.up_proj.weight" in load_file(state / WEIGHTS)
    train(checkpoint, parts, options(corpus, **changes), resume=True)
    one, other = (load_file(path / "model.safetensors") for path in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
