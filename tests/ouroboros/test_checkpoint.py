"""Checkpoints: they load alone, are written whole or not at all, and damage is named."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ouroboros import OuroborosConfig, OuroborosForCausalLM
from ouroboros.checkpoint import checkpoint_sha256, load_checkpoint, save_checkpoint
from ouroboros.errors import CheckpointError, ConfigError, OuroborosError
from runtime.files.atomic import publish


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, path)
    return path


def test_round_trip_is_exact(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    save_checkpoint(model, tokenizer, tmp_path / "again")
    twin, _ = load_checkpoint(tmp_path / "again")
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    assert twin.config.trained_depths == [1, 2, 3, 4]
    assert not list(tmp_path.glob(".again*"))


def test_saving_keeps_what_is_named_and_nothing_else(copy: Path) -> None:
    (copy / "state").mkdir()
    (copy / "state" / "note").write_text("kept")
    model, _ = load_checkpoint(copy)
    (copy / "model.safetensors.index.json").write_text("{}")
    save_checkpoint(model, None, copy, keep=("state", "logs"))
    assert (copy / "state" / "note").read_text() == "kept"
    names = sorted(p.name for p in copy.iterdir())
    weights = ["model.safetensors", "modeling_ouroboros.py"]
    assert names == ["config.json", "generation_config.json", *weights, "state"]
    assert load_checkpoint(copy)[1] is None
    with pytest.raises(CheckpointError, match="is a training run, so it is left alone"):
        save_checkpoint(model, None, copy)
    assert (copy / "state" / "note").read_text() == "kept"


def test_weights_have_the_mode_of_the_other_files(copy: Path) -> None:
    save_checkpoint(*load_checkpoint(copy), copy)
    modes = {p.stat().st_mode for p in copy.iterdir()}
    assert len(modes) == 1


def test_full_disk_leaves_the_old_checkpoint(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_checkpoint(copy)
    before = checkpoint_sha256(copy)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ouroboros.checkpoint.write_weights", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*untouched"):
        save_checkpoint(model, tokenizer, copy)
    assert checkpoint_sha256(copy) == before
    assert [p.name for p in copy.parent.iterdir()] == ["checkpoint"]


def test_publish_interrupted_leaves_the_old_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")

    def interrupted() -> None:
        with publish(out, known=("a", "b")) as staging:
            (staging / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (out / "a").read_text() == "old"
    with publish(out, known=("a", "b")) as staging:
        (staging / "b").write_text("new")
    assert [p.name for p in out.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps({**fields, **changes}))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"halting": True}, ConfigError, "unknown keys halting"),
        ({"model_type": "llama"}, CheckpointError, "not an Ouroboros checkpoint"),
        ({"depth": 99}, ConfigError, "depth=99"),
        ({"rank": "x"}, OuroborosError, "."),
        (
            {"max_depth": 9},
            CheckpointError,
            r"mismatched weights, recurrent.*: \[\d.*\] instead of \[",
        ),
        ({"prelude": 1}, CheckpointError, "unexpected|missing|mismatched"),
    ],
)
def test_bad_configs_are_refused(
    copy: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    edit_config(copy, **changes)
    with pytest.raises(error, match=words) as caught:
        load_checkpoint(copy)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[:-100], whole[:7], b"", b"\xff" * 64):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated or not a safetensors"):
            load_checkpoint(copy)
    file.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(copy)
    file.write_bytes(whole)
    tensors = load_file(file)
    tensors["norm.weight"][0] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"norm\.weight holds NaN or infinity"):
        load_checkpoint(copy)
    tensors["norm.weight"] = tensors["norm.weight"].nan_to_num().int()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"norm\.weight is I32, allowed: F64, F32"):
        load_checkpoint(copy)
    del tensors["norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 missing weights"):
        load_checkpoint(copy)


def test_untied_head_may_not_be_missing(tmp_path: Path) -> None:
    """A tied head is never in the file; an untied one that is not there would be random."""
    base = {
        "model_type": "llama", "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 6, "num_attention_heads": 4, "tie_word_embeddings": False,
    }  # fmt: skip
    config = OuroborosConfig(base_config=base, prelude=2, coda=2, rank=4, max_depth=3, depth=3)
    save_checkpoint(OuroborosForCausalLM(config), None, tmp_path / "untied")
    load_checkpoint(tmp_path / "untied")
    file = tmp_path / "untied" / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing weights, lm_head\.weight first"):
        load_checkpoint(tmp_path / "untied")


def test_index_may_not_leave_the_checkpoint(copy: Path) -> None:
    index = {"weight_map": {"norm.weight": "../secret.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not in the checkpoint"):
        load_checkpoint(copy)


def test_an_index_beside_weights_that_it_does_not_name_is_refused(copy: Path) -> None:
    """transformers loads the one, and hashes would be of the other."""
    whole = copy / "model.safetensors"
    part = copy / "model-00001-of-00001.safetensors"
    shutil.copyfile(whole, part)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(part), part.name)}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not clear which weights are meant; take one of the"):
        load_checkpoint(copy)
    whole.unlink()
    load_checkpoint(copy)


@pytest.mark.parametrize(
    "template", [[{"name": "../../../x", "template": "x"}], [{"name": "a/b", "template": "x"}]]
)
def test_a_chat_template_can_not_be_named_as_a_path(copy: Path, template: object) -> None:
    for file in copy.glob("chat_template.jinja"):
        file.unlink()
    config = copy / "tokenizer_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "chat_template": template}))
    with pytest.raises(CheckpointError, match=r"its chat template '.*' is no text, or its name"):
        load_checkpoint(copy)


def test_missing_and_broken_config(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(CheckpointError, match="ouro convert"):
        load_checkpoint(tmp_path / "nowhere")
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        load_checkpoint(copy)


def test_what_stands_in_the_place_of_a_checkpoint_is_named(copy: Path, tmp_path: Path) -> None:
    def refuse(path: Path, words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(path)

    refuse(copy / "config.json", "config.json is a file, not a checkpoint; give the directory")
    (tmp_path / "run" / "state" / "step-1").mkdir(parents=True)
    refuse(tmp_path / "run", "is a training run, not a checkpoint; it holds no weights yet")
    (tmp_path / "bundle").mkdir()
    manifest = {"format_version": 4, "files": {}, "graphs": {}}
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    refuse(tmp_path / "bundle", "is a bundle, not a checkpoint; give the checkpoint that it was")
