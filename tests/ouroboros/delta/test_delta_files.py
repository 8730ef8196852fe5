"""The files of a delta: how large, of which names, what is left out, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ouroboros import convert, restore_delta, save_delta
from ouroboros.delta.record import INDEX, read_record
from ouroboros.errors import CheckpointError, ConfigError
from tests.support.deltas import require_same_files
from tests.support.gguf import write_gguf
from tests.support.processes import call_ouro


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


def test_no_file_is_larger_than_asked(
    tiny_original: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors and a tokenizer that are larger than one file are cut; it is all put together."""
    monkeypatch.setattr("ouroboros.delta.options.MEGABYTE", 5000)
    with (checkpoint / "tokenizer.json").open("a") as file:
        file.write("\n")  # no longer the source's
    save_delta(checkpoint, tmp_path / "delta", str(tiny_original), max_file_mb=1)
    record = read_record(tmp_path / "delta")
    index = json.loads((tmp_path / "delta" / INDEX).read_text())["weight_map"]
    shards = {name: one.bytes for name, one in record.own.items() if name in index.values()}
    assert len(shards) > 20
    assert max(shards.values()) <= 5000
    pieces = record.weights["model.safetensors"].tensors["recurrent.gate.proj.weight"].pieces
    assert len(pieces) > 3
    parts = record.files["tokenizer.json"]
    assert len(parts) > 1
    assert all(record.own[part].bytes <= 5000 for part in parts)
    restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original))
    require_same_files(checkpoint, tmp_path / "back")


def test_a_run_leaves_its_state_out(
    tiny_original: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint, run)
    (run / "state" / "step-3").mkdir(parents=True)
    (run / "state" / "step-3" / "optimizer.pt").write_bytes(b"0" * 100)
    report = save_delta(run, tmp_path / "delta", str(tiny_original))
    assert report.left_out == ()
    restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original))
    require_same_files(tiny_checkpoint, tmp_path / "back")


def test_two_deltas_of_one_checkpoint_are_the_same(
    tiny_original: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        save_delta(tiny_checkpoint, tmp_path / name, str(tiny_original))
    require_same_files(tmp_path / "one", tmp_path / "two")
    save_delta(tiny_checkpoint, tmp_path / "one", str(tiny_original), dtype="bfloat16")  # replaced
    assert read_record(tmp_path / "one").dtype == "bfloat16"


def test_what_a_desktop_leaves_is_no_part_of_a_checkpoint(
    tiny_original: Path, checkpoint: Path, tmp_path: Path
) -> None:
    inner = checkpoint / "additional_chat_templates"
    inner.mkdir()
    for folder in (checkpoint, inner):
        (folder / ".DS_Store").write_bytes(b"x")
    (inner / "tool_use.jinja").write_text("{{ messages }}")
    save_delta(checkpoint, tmp_path / "delta", str(tiny_original))
    assert not list((tmp_path / "delta").rglob(".DS_Store"))
    restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original))
    (inner / ".DS_Store").unlink()
    (checkpoint / ".DS_Store").unlink()
    require_same_files(checkpoint, tmp_path / "back")


def test_a_name_that_no_delta_may_hold_is_refused_before_it_is_written(
    tiny_original: Path, checkpoint: Path, tmp_path: Path
) -> None:
    inner = checkpoint / "additional_chat_templates"
    inner.mkdir()
    (inner / "tool use.jinja").write_text("{{ messages }}")
    with pytest.raises(
        CheckpointError, match=r"tool use\.jinja: a delta holds files of plain name"
    ):
        save_delta(checkpoint, tmp_path / "delta", str(tiny_original))
    assert not (tmp_path / "delta").exists()


def test_metadata_of_several_keys_come_back_in_order(
    tiny_original: Path, checkpoint: Path, tmp_path: Path
) -> None:
    file = checkpoint / "model.safetensors"
    metadata = dict.fromkeys(("format", "a", "zebra", "m", "b"), "x")
    save_file(load_file(file), file, metadata={**metadata, "format": "pt"})
    options = {"dtype": "bfloat16"}
    save_delta(checkpoint, tmp_path / "delta", str(tiny_original), **options)
    report = restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original))
    with safe_open(tmp_path / "back" / "model.safetensors", "pt") as restored:
        assert restored.metadata() == {**metadata, "format": "pt"}
    assert not report.identical
    save_file(load_file(file), file, metadata={"format": "pt", "long": "x" * 2000})
    with pytest.raises(CheckpointError, match=r"can't stand in a delta: .*, no short text; write"):
        save_delta(checkpoint, tmp_path / "other", str(tiny_original), **options)
    assert not (tmp_path / "other").exists()


def test_a_source_that_is_not_there_is_told_first(
    tiny_original: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_delta(tiny_checkpoint, tmp_path / "delta", str(tiny_original))
    monkeypatch.setattr("ouroboros.delta.restore.check_own", lambda *_: pytest.fail("it is read"))
    with pytest.raises(CheckpointError, match="nowhere"):
        restore_delta(tmp_path / "delta", tmp_path / "back", str(tmp_path / "nowhere"))


def test_another_source_is_refused(
    tiny_original: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_original, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] += 1  # a layer that is not even kept
    model.save_pretrained(other)
    words = r"not the model that .* stands on; its model\.safetensors has sha256 .*; give .* as the"
    with pytest.raises(CheckpointError, match=words):
        save_delta(tiny_checkpoint, tmp_path / "delta", str(other))
    save_delta(tiny_checkpoint, tmp_path / "delta", str(tiny_original))
    with pytest.raises(CheckpointError, match=words) as caught:
        restore_delta(tmp_path / "delta", tmp_path / "back", str(other))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_damaged_source_is_told_by_its_hash(
    kind: str, tiny_original: Path, tmp_path: Path
) -> None:
    """Nothing of it is read before its hash is right."""
    source = tmp_path / "source"
    shutil.copytree(tiny_original, source)
    file = source / "model.safetensors"
    if kind == "gguf":
        file = source = tmp_path / "model.gguf"
        write_gguf(tiny_original, file)
    options: dict[str, Any] = {"prelude": 2, "coda": 2, "recurrent": 3, "rank": 4}
    options |= {"norm_init": "ones", "bridge": "none", "max_depth": 8, "depth": 4}
    convert(str(source), tmp_path / "checkpoint", **options)
    save_delta(tmp_path / "checkpoint", tmp_path / "delta", str(source))
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:12] + b"\xff" * 60 + whole[72:], whole[:-1000]):
        file.write_bytes(damaged)
        words = rf"not the model that .* stands on; its {file.name} has sha256"
        with pytest.raises(CheckpointError, match=words):
            restore_delta(tmp_path / "delta", tmp_path / "back", str(source))
        with pytest.raises(CheckpointError, match=words):
            save_delta(tmp_path / "checkpoint", tmp_path / "other", str(source))


def test_what_stands_in_the_way_is_left_alone(
    tiny_original: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "mine")
    with pytest.raises(CheckpointError, match="is a checkpoint of Ouroboros, so it is left alone"):
        save_delta(tiny_checkpoint, tmp_path / "mine", str(tiny_original))
    save_delta(tiny_checkpoint, tmp_path / "delta", str(tiny_original))
    with pytest.raises(CheckpointError, match="is what it is made from"):
        restore_delta(tmp_path / "delta", tmp_path / "delta", str(tiny_original))
    (tmp_path / "delta" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"is a delta of a checkpoint but also holds notes"):
        save_delta(tiny_checkpoint, tmp_path / "delta", str(tiny_original))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float8"},
        {"max_file_mb": 0},
        {"adapter_rank": -1, "dtype": "bfloat16"},
        {"adapter_rank": 4},
    ],
)
def test_bad_options_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        save_delta(tmp_path, tmp_path / "delta", "x", **change)


def test_the_commands_say_what_they_did(
    tiny_original: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    delta, back = tmp_path / "delta", tmp_path / "back"
    done = call_ouro("delta", tiny_checkpoint, delta, "--source", tiny_original)
    assert done.returncode == 0, done.stderr
    assert f"next: ouro restore {delta} CHECKPOINT --source {tiny_original}" in done.stdout
    for command in (["inspect", delta], ["export", delta, tmp_path / "bundle"]):
        refused = call_ouro(*command)
        assert refused.returncode == 1
        assert f"ouro restore {delta} OUT --source SOURCE" in refused.stderr
    done = call_ouro("restore", delta, back, "--source", tiny_original)
    assert done.returncode == 0, done.stderr
    assert "the same to the bit as the checkpoint it was made from" in done.stdout
    require_same_files(tiny_checkpoint, back)
