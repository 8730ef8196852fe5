"""Deltas: what they hold, and that they come back to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ouroboros import OuroborosConfig, OuroborosForCausalLM, restore_delta, save_delta
from ouroboros.checkpoint import checkpoint_sha256, hash_file, load_checkpoint, save_checkpoint
from ouroboros.conversion.convert import convert
from ouroboros.delta.record import INDEX, read_record
from ouroboros.errors import CheckpointError
from ouroboros.storage.tensors import DTYPES
from tests.support.deltas import held_in, require_same_files
from tests.support.gguf import write_gguf
from tests.support.tiny import DIMENSIONS, name_as_before, randomise

OPTIONS: dict[str, Any] = {
    "prelude": 2, "coda": 2, "recurrent": 3, "rank": 4, "max_depth": 4, "depth": 2,
    "norm_init": "ones", "bridge": "none",
}  # fmt: skip


def train_all(checkpoint: Path, **marks: str) -> None:
    """Changes what trains, as training does, and saves it again."""
    model, tokenizer = load_checkpoint(checkpoint)
    randomise(model)
    model.mark_trainable(**marks)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape) * 0.01)
    save_checkpoint(model, tokenizer, checkpoint, keep=("LICENSE", "ATTRIBUTION"))


def test_a_fresh_conversion_leaves_all_that_was_kept_to_its_source(
    tiny_original: Path, tmp_path: Path
) -> None:
    convert(str(tiny_original), tmp_path / "out", **OPTIONS)
    report = save_delta(tmp_path / "out", tmp_path / "delta", str(tiny_original))
    model, _ = load_checkpoint(tmp_path / "out")
    bases = {name for name, _ in model.named_buffers() if ".lora_" in name}
    assert set(report.tensors) == {*model.trainable_names(), *bases}
    assert set(report.copied) == set(model.state_dict()) - set(report.tensors) - {"lm_head.weight"}
    assert set(held_in(tmp_path / "delta")) == set(report.tensors)


@pytest.mark.parametrize("marks", [{}, {"coda": "norms"}, {"coda": "full", "recurrent": "full"}])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_it_comes_back_to_the_bit(
    tiny_original: Path, tmp_path: Path, marks: dict[str, str], kind: torch.dtype
) -> None:
    source, checkpoint = tmp_path / "source", tmp_path / "checkpoint"
    shutil.copytree(tiny_original, source)
    weights = {n: v.to(kind) for n, v in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    convert(str(source), checkpoint, **OPTIONS)
    train_all(checkpoint, **marks)
    report = save_delta(checkpoint, tmp_path / "delta", str(source))
    trained = load_checkpoint(checkpoint)[0]
    trained.mark_trainable(**marks)
    assert set(trained.trainable_names()) <= set(report.tensors)
    restored = restore_delta(tmp_path / "delta", tmp_path / "back", str(source))
    require_same_files(checkpoint, tmp_path / "back")
    assert restored.identical
    assert restored.sha256 == checkpoint_sha256(checkpoint) == checkpoint_sha256(tmp_path / "back")


@pytest.mark.parametrize("before", [False, True], ids=["a block", "one layer by its old name"])
def test_looped_layers_are_the_sources(tiny_original: Path, tmp_path: Path, before: bool) -> None:
    checkpoint = tmp_path / "checkpoint"
    options = OPTIONS if before else {**OPTIONS, "recurrent": "2-3"}
    convert(str(tiny_original), checkpoint, **options)
    name = "recurrent.layers.1.mlp.up_proj.weight"
    if before:
        name_as_before(checkpoint / "model.safetensors")
        name = "recurrent.layer.mlp.up_proj.weight"
    report = save_delta(checkpoint, tmp_path / "delta", str(tiny_original))
    assert name in report.copied
    record = json.loads((tmp_path / "delta" / "delta.json").read_text())
    source = record["weights"]["model.safetensors"]["tensors"][name]["source"]
    assert source == "model.layers.3.mlp.up_proj.weight"
    assert restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original)).identical
    require_same_files(checkpoint, tmp_path / "back")


def test_what_no_list_of_names_knows_is_held(tiny_original: Path, tmp_path: Path) -> None:
    """A bridge, a head of its own, and a vocabulary that was resized."""
    checkpoint = tmp_path / "checkpoint"
    convert(str(tiny_original), checkpoint, **OPTIONS)
    model, tokenizer = load_checkpoint(checkpoint)
    base = {**model.config.base_config, "vocab_size": 300, "tie_word_embeddings": False}
    fields = {
        name: getattr(model.config, name)
        for name in ("prelude", "coda", "recurrent", "rank", "max_depth", "depth", "source")
    }
    config = OuroborosConfig(base_config=base, bridge="entry", **fields)
    grown = OuroborosForCausalLM(config)
    state = model.state_dict()
    for name in ("embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.randn(300 - len(state[name]), 64)])
    assert set(grown.load_state_dict(state, strict=False).missing_keys) == {
        "bridge.weight", "bridge.bias"
    }  # fmt: skip
    save_checkpoint(grown, tokenizer, checkpoint, keep=("LICENSE", "ATTRIBUTION"))
    report = save_delta(checkpoint, tmp_path / "delta", str(tiny_original))
    new = {"bridge.weight", "bridge.bias", "embed_tokens.weight", "lm_head.weight"}
    assert new <= set(report.tensors)
    assert "prelude.0.mlp.up_proj.weight" in report.copied
    restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original))
    require_same_files(checkpoint, tmp_path / "back")


def test_a_head_that_was_tied_in_the_source_is_taken_from_its_embedding(
    tiny_original: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    convert(str(tiny_original), checkpoint, **OPTIONS)
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    config["tie_word_embeddings"] = config["base_config"]["tie_word_embeddings"] = False
    file.write_text(json.dumps(config))
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    report = save_delta(checkpoint, tmp_path / "delta", str(tiny_original))
    assert "lm_head.weight" in report.copied
    restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original))
    require_same_files(checkpoint, tmp_path / "back")


def test_a_gguf_is_dequantised_alike(tiny_original: Path, tmp_path: Path) -> None:
    file, checkpoint = tmp_path / "model.gguf", tmp_path / "checkpoint"
    write_gguf(tiny_original, file)
    convert(str(file), checkpoint, **OPTIONS)
    train_all(checkpoint, coda="norms")
    report = save_delta(checkpoint, tmp_path / "delta", str(file))
    assert "prelude.1.self_attn.q_proj.weight" in report.copied
    renamed = tmp_path / "elsewhere" / "renamed.gguf"
    renamed.parent.mkdir()
    shutil.copyfile(file, renamed)
    assert restore_delta(tmp_path / "delta", tmp_path / "back", str(renamed)).identical
    require_same_files(checkpoint, tmp_path / "back")


def test_rounded_it_comes_back_as_the_rounding(tiny_original: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    convert(str(tiny_original), checkpoint, **OPTIONS)
    train_all(checkpoint, coda="full")
    whole = save_delta(checkpoint, tmp_path / "whole", str(tiny_original))
    report = save_delta(checkpoint, tmp_path / "delta", str(tiny_original), dtype="bfloat16")
    assert report.tensors == whole.tensors
    assert {value.dtype for value in held_in(tmp_path / "delta").values()} == {torch.bfloat16}
    restored = restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original))
    assert not restored.identical
    assert restored.sha256 == checkpoint_sha256(tmp_path / "back")
    before, after = (load_checkpoint(tmp_path / one)[0] for one in ("checkpoint", "back"))
    expected = before.state_dict()
    for name, value in after.state_dict().items():
        rounded = expected[name].bfloat16().float() if name in report.tensors else expected[name]
        assert torch.equal(value, rounded), name
    stored = load_file(tmp_path / "back" / "model.safetensors")
    assert {stored[name].dtype for name in after.trainable_names()} == {torch.float32}
    assert stored["coda.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    again = save_checkpoint(after, load_checkpoint(tmp_path / "back")[1], tmp_path / "again")
    assert again == restored.sha256


def test_what_rounding_would_make_infinite_is_kept(tiny_original: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    convert(str(tiny_original), checkpoint, **OPTIONS)
    model, tokenizer = load_checkpoint(checkpoint)
    with torch.no_grad():
        model.recurrent.norm.weight[0, 0] = torch.finfo(torch.float32).max
    save_checkpoint(model, tokenizer, checkpoint, keep=("LICENSE", "ATTRIBUTION"))
    save_delta(checkpoint, tmp_path / "delta", str(tiny_original), dtype="bfloat16")
    restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original))
    found = load_checkpoint(tmp_path / "back")[0].recurrent.norm.weight
    assert torch.equal(found, model.recurrent.norm.weight)


def test_a_checkpoint_in_several_files_comes_back_in_several(tmp_path: Path) -> None:
    """Also an original in several, and one that is not tied."""
    torch.manual_seed(0)
    config = LlamaConfig(**DIMENSIONS, tie_word_embeddings=False)
    original = LlamaForCausalLM(config)
    original.save_pretrained(tmp_path / "source", max_shard_size="40KB")
    convert(str(tmp_path / "source"), tmp_path / "one", **OPTIONS)
    model, _ = load_checkpoint(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    report = save_delta(tmp_path / "many", tmp_path / "delta", str(tmp_path / "source"))
    assert "lm_head.weight" in report.copied
    restore_delta(tmp_path / "delta", tmp_path / "back", str(tmp_path / "source"))
    require_same_files(tmp_path / "many", tmp_path / "back")


def test_a_vocabulary_that_the_source_has_too_is_not_held(
    tiny_original: Path, tmp_path: Path
) -> None:
    source, checkpoint = tmp_path / "source", tmp_path / "checkpoint"
    shutil.copytree(tiny_original, source)
    convert(str(source), checkpoint, **OPTIONS)
    (checkpoint / "notes.txt").write_text("mine")
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    report = save_delta(checkpoint, tmp_path / "delta", str(source))
    assert report.left_out == ("notes.txt",)
    record = read_record(tmp_path / "delta")
    assert record.copied["tokenizer.json"] == hash_file(source / "tokenizer.json")
    held = {path.name for path in (tmp_path / "delta").iterdir()}
    assert not held & {"tokenizer.json", "notes.txt", "modeling_ouroboros.py"}
    assert {"config.json", "LICENSE", "ATTRIBUTION", "delta.json", INDEX} <= held
    restore_delta(tmp_path / "delta", tmp_path / "back", str(source))
    (checkpoint / "notes.txt").unlink()
    require_same_files(checkpoint, tmp_path / "back")
    (source / "tokenizer.json").write_text((source / "tokenizer.json").read_text() + "\n")
    with pytest.raises(CheckpointError, match=r"its tokenizer\.json is not the one that .* takes"):
        restore_delta(tmp_path / "delta", tmp_path / "other", str(source))
    assert not (tmp_path / "other").exists()


def test_every_type_of_a_checkpoint_is_kept(
    tiny_original: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """One saved in another type than its source: what is the source's rounded is not held."""
    for name, dtype in DTYPES.items():
        model, tokenizer = load_checkpoint(tiny_checkpoint)
        save_checkpoint(model.to(dtype), tokenizer, tmp_path / name)
        report = save_delta(tmp_path / name, tmp_path / f"delta-{name}", str(tiny_original))
        assert "prelude.0.mlp.up_proj.weight" in report.copied, name
        restore_delta(tmp_path / f"delta-{name}", tmp_path / f"back-{name}", str(tiny_original))
        require_same_files(tmp_path / name, tmp_path / f"back-{name}")
