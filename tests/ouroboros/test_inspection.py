"""What `ouro inspect` reads of a checkpoint; the command's own tests are in tests/cli."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ouroboros.checkpoint import load_checkpoint
from ouroboros.errors import CheckpointError, ConfigError
from ouroboros.inspection import inspect_checkpoint, inspect_weights, read_entries

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16),
    "none": torch.zeros(0, 4, dtype=torch.float16),
    "half": torch.tensor(7.0, dtype=torch.float16),
    "c": torch.tensor([[3.0]], dtype=torch.float64),
}


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copied"))


def test_entries_say_where_a_tensor_lies(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(TENSORS, file)
    entries = {entry.name: entry for entry in read_entries(file)}
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        "a": ("BF16", (3,)), "b": ("F32", (2, 3)), "c": ("F64", (1, 1)), "half": ("F16", ()),
        "none": ("F16", (0, 4)),
    }  # fmt: skip
    content = file.read_bytes()
    for name, entry in entries.items():
        expected = TENSORS[name].reshape(-1).view(torch.uint8) if TENSORS[name].dim() else None
        raw = np.float16(7).tobytes() if expected is None else expected.numpy().tobytes()
        assert content[entry.start : entry.start + len(raw)] == raw, name
    report = inspect_weights(file)
    assert report.problem is None
    assert (report.bytes, report.parameters) == (len(content), 11)


def test_what_no_checkpoint_holds_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"counts": torch.zeros(3, dtype=torch.int64)}, file)
    with pytest.raises(CheckpointError, match="counts is I64, allowed: F64, F32, F16, BF16; conv"):
        read_entries(file)
    file.write_bytes(b"cut")
    found = inspect_weights(file)
    assert found.tensors == ()
    assert "is damaged" in str(found.problem)


def test_report_holds_all_that_could_be_read(copied: Path) -> None:
    whole = inspect_checkpoint(copied)
    assert (whole.problem, whole.unread) == (None, "")
    assert [file.name for file in whole.files] == ["model.safetensors"]
    tensors = load_file(copied / "model.safetensors")
    assert whole.files[0].parameters == sum(one.numel() for one in tensors.values())
    tensors["recurrent.norm.weight"].view(-1)[0] = float("nan")
    save_file(tensors, copied / "more.safetensors")
    damaged = inspect_checkpoint(copied)
    assert [file.problem is None for file in damaged.files] == [True, False]
    assert "recurrent.norm.weight holds NaN" in str(damaged.problem)
    (copied / "more.safetensors").unlink()
    fields = {**whole.config, "surprise": 1}
    (copied / "config.json").write_text(json.dumps(fields))
    assert isinstance(inspect_checkpoint(copied).problem, ConfigError)
    (copied / "model.safetensors").unlink()
    assert "holds no .safetensors file" in str(inspect_checkpoint(copied).problem)


def store_other_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def store_twice(folder: Path) -> None:
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.rename(folder / "a.safetensors")
    save_file({"norm.weight": tensors["norm.weight"]}, folder / "b.safetensors", {"format": "pt"})
    places = {**dict.fromkeys(tensors, "a.safetensors"), "norm": "b.safetensors"}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def leave_one_out(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def break_sampling_defaults(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    "damage", [store_other_head, store_twice, leave_one_out, break_sampling_defaults,
               break_tokenizer],
)  # fmt: skip
def test_what_loading_refuses_is_not_called_whole(
    copied: Path, damage: Callable[[Path], None]
) -> None:
    damage(copied)
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(copied)
    assert str(inspect_checkpoint(copied).problem) == str(refused.value)


def test_a_tied_head_may_be_stored(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"].double()
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    load_checkpoint(copied)
    assert inspect_checkpoint(copied).problem is None
