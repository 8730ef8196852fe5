"""Facts that a config states twice: set once they hold everywhere, and contradictions are named."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ouroboros import OuroborosConfig, OuroborosForCausalLM, load_checkpoint
from ouroboros.errors import CheckpointError, ConfigError
from tests.support.tiny import DIMENSIONS, SMALL

BASE: dict[str, Any] = {"model_type": "llama", **DIMENSIONS}


def make_config(**base: Any) -> OuroborosConfig:
    config: OuroborosConfig = OuroborosConfig(base_config={**BASE, **base}, **SMALL)
    return config


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, path)
    return path


def edit_config(path: Path, base: dict[str, Any], **changes: Any) -> None:
    file = path / "config.json"
    fields = json.loads(file.read_text())
    fields["base_config"].update(base)
    file.write_text(json.dumps({**fields, **changes}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("more", [5, -7])
def test_resized_embeddings_survive_being_saved(tmp_path: Path, tied: bool, more: int) -> None:
    model = OuroborosForCausalLM(make_config(tie_word_embeddings=tied)).eval()
    model.resize_token_embeddings(90 + more, mean_resizing=False)
    model.save_pretrained(tmp_path)
    again, _ = load_checkpoint(tmp_path)
    assert again.config.vocab_size == again.config.base_config["vocab_size"] == 90 + more
    assert (again.lm_head.weight is again.embed_tokens.weight) == tied
    ids = torch.arange(12)[None]
    with torch.no_grad():
        found, expected = again(ids).logits, model(ids).logits
    assert found.shape[-1] == 90 + more
    assert torch.equal(found, expected)
    with torch.no_grad():
        loss = again(ids, labels=ids).loss
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eos_token_id", 7),
        ("eos_token_id", [7, 8]),
        ("eos_token_id", None),
        ("pad_token_id", 5),
        ("bos_token_id", 6),
        ("max_position_embeddings", 128),
        ("initializer_range", 0.5),
    ],
)
def test_what_is_set_on_the_top_is_saved_once_for_both(
    checkpoint: Path, tmp_path: Path, name: str, value: Any
) -> None:
    model, _ = load_checkpoint(checkpoint)
    setattr(model.config, name, value)
    assert getattr(model.config.base(), name) == value
    model.save_pretrained(tmp_path / "again")
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert getattr(again, name) == getattr(again.base(), name) == value
    load_checkpoint(tmp_path / "again")


def test_setting_a_field_to_a_wrong_kind_is_refused() -> None:
    config = make_config()
    with pytest.raises(ConfigError, match="vocab_size='x' must be a whole number"):
        config.vocab_size = "x"  # type: ignore[assignment]
    assert config.vocab_size == config.base_config["vocab_size"] == 90


def test_a_copy_keeps_its_own_value() -> None:
    for duplicate in (copy.copy, copy.deepcopy):
        config = make_config()
        twin = duplicate(config)
        config.vocab_size = 95
        assert twin.vocab_size == twin.base_config["vocab_size"] == 90
        twin.vocab_size = 500
        assert config.vocab_size == config.base().vocab_size == 95


def test_the_callers_dict_is_left_alone() -> None:
    base = dict(BASE)
    config = OuroborosConfig(base_config=base, pad_token_id=3, **SMALL)
    config.vocab_size = 95
    assert base == BASE


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        ({}, {"eos_token_id": 7}, "eos_token_id=7 disagrees with base_config's 2"),
        ({"eos_token_id": [2, 7]}, {"eos_token_id": 7}, r"=7 disagrees with base_config's \[2, 7"),
        ({}, {"eos_token_id": None}, "eos_token_id=None disagrees with base_config's 2"),
        ({}, {"bos_token_id": 9}, "bos_token_id=9 disagrees with base_config's 1"),
        ({"pad_token_id": 4}, {"pad_token_id": 9}, "pad_token_id=9 disagrees with base_config's 4"),
        ({}, {"vocab_size": 100}, "vocab_size=100 disagrees with base_config's 259"),
        ({"vocab_size": 300}, {"vocab_size": 259}, "vocab_size=259 disagrees with .*'s 300"),
        ({}, {"head_dim": 8}, "head_dim=8 disagrees with base_config's 16"),
        ({}, {"tie_word_embeddings": False}, "tie_word_embeddings=False disagrees with .*True"),
        ({}, {"initializer_range": 0.5}, "initializer_range=0.5 disagrees with .* 0.02"),
    ],
)
def test_contradictions_are_refused_by_both_values(
    checkpoint: Path, base: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    edit_config(checkpoint, base, **changes)
    for load in (load_checkpoint, AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ConfigError, match=words) as caught:
            load(checkpoint)
        assert "\n" not in str(caught.value)


def test_contradicting_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size=91 disagrees with base_config's 90"):
        OuroborosConfig(base_config=BASE, vocab_size=91, **SMALL)


def test_a_token_that_only_the_top_level_names_is_taken_over(checkpoint: Path) -> None:
    """As checkpoints have it that were saved after `model.config.pad_token_id = ...`."""
    edit_config(checkpoint, {"pad_token_id": None}, pad_token_id=2)
    config = load_checkpoint(checkpoint)[0].config
    assert config.pad_token_id == config.base().pad_token_id == 2


def test_tied_head_that_differs_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    load_checkpoint(checkpoint)
    tensors["lm_head.weight"][5, 3] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embedding"):
        load_checkpoint(checkpoint)
