"""Checkpoints of before, whose one looped layer went by another name, still load."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ouroboros import load_checkpoint
from ouroboros.inspection import inspect_checkpoint
from ouroboros.model.names import current_name
from tests.support.tiny import name_as_before


@pytest.fixture
def old(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint as an earlier version wrote it."""
    path = Path(shutil.copytree(tiny_checkpoint, tmp_path / "old"))
    name_as_before(path / "model.safetensors")
    return path


def test_checkpoint_of_before_loads(tiny_checkpoint: Path, old: Path, tmp_path: Path) -> None:
    assert any(name.startswith("recurrent.layer.") for name in load_file(old / "model.safetensors"))
    expected = load_checkpoint(tiny_checkpoint)[0].state_dict()
    automatic = AutoModelForCausalLM.from_pretrained(old)
    automatic.save_pretrained(tmp_path / "again")
    loaded = [load_checkpoint(path)[0] for path in (old, tmp_path / "again")]
    for model in (automatic, *loaded):
        assert model.state_dict().keys() == expected.keys()
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected[name]), name
    assert inspect_checkpoint(old).problem is None


def test_names_of_now_stay(tiny_checkpoint: Path) -> None:
    names = load_checkpoint(tiny_checkpoint)[0].state_dict()
    assert [current_name(name) for name in names] == list(names)
    assert current_name("recurrent.layer.mlp.up_proj.weight") in names
