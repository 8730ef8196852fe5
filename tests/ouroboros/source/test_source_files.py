"""Which files of an original are read: shards, what lies beside them, generation settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ouroboros import convert, load_checkpoint
from ouroboros.errors import OuroborosError, SourceError
from ouroboros.source.locate import locate
from ouroboros.source.weights import open_original
from tests.support.tiny import EMBEDDING, OPTIONS


def shard(folder: Path, keep_single: bool) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[:20], names[20:])):
        file = f"model-{number}.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    if not keep_single:
        (folder / "model.safetensors").unlink()


def test_two_sets_of_safetensors_are_refused(copy: Path) -> None:
    shard(copy, keep_single=True)
    with pytest.raises(SourceError, match=r"holds model.safetensors and model.safetensors.ind"):
        open_original(locate(str(copy)))
    index = {"weight_map": {EMBEDDING: "model.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    notes = open_original(locate(str(copy))).notes
    assert notes == (
        "reading model.safetensors; not read: model-0.safetensors, model-1.safetensors",
    )


def test_a_tensor_in_two_shards_is_refused(copy: Path) -> None:
    shard(copy, keep_single=False)
    file = copy / "model-1.safetensors"
    save_file({**load_file(file), EMBEDDING: torch.ones(259, 64)}, file, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"embed_tokens.weight is in model-0.safetensors and"):
        open_original(locate(str(copy)))


def test_stale_index_is_refused(copy: Path) -> None:
    shard(copy, keep_single=False)
    (copy / "model-1.safetensors").rename(copy / "model-2.safetensors")
    words = (
        r"can't load the weights: model.safetensors.index.json names model-1.*, which is missing"
    )
    with pytest.raises(SourceError, match=words):
        open_original(locate(str(copy)))


def test_weight_files_that_are_not_read_are_said(copy: Path, tmp_path: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"other")
    (copy / "consolidated.safetensors").write_bytes(b"other")
    lines: list[str] = []
    convert(copy, tmp_path / "out", report=lines.append, **OPTIONS)
    said = "reading model.safetensors; not read: consolidated.safetensors, pytorch_model.bin"
    assert said in lines


def test_no_weights_at_all(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"there is no model.safetensors, .*download it again"):
        open_original(locate(str(copy)))


def test_a_git_lfs_pointer_is_named(copy: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"
    (copy / "model.safetensors").write_text(text)
    with pytest.raises(SourceError, match=r"model.safetensors is a Git LFS pointer, .*lfs pull"):
        open_original(locate(str(copy)))


def test_adapter_beside_a_model_is_refused(copy: Path) -> None:
    (copy / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(SourceError, match=r"holds a PEFT adapter .*would be left out; merge it"):
        convert(copy, copy.parent / "out", **OPTIONS)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.6, "top_p": 0.9},
        {"do_sample": False, "temperature": 0.0, "top_k": None, "typical_p": 0.9, "min_p": 0.1},
        {"do_sample": True, "temperature": None, "top_p": 1, "repetition_penalty": 1.1},
        {"eos_token_id": []},
        {"eos_token_id": [2, 999], "pad_token_id": -1, "bos_token_id": None},
        {"max_length": 4096, "use_cache": False, "transformers_version": "4.30.0"},
        {"output_scores": True, "cache_implementation": "hybrid"},
    ],
)
def test_sampling_defaults_of_real_models_convert_and_load(
    copy: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    (copy / "generation_config.json").write_text(json.dumps(values))
    convert(copy, tmp_path / "out", **OPTIONS)
    model, tokenizer = load_checkpoint(tmp_path / "out")
    if "eos_token_id" in values:
        assert model.generation_config.eos_token_id == values["eos_token_id"]
    from ouroboros import save_checkpoint

    save_checkpoint(model, tokenizer, tmp_path / "again")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "generation_config.json: "),
        ("[1]", "it holds a list, not an object"),
        ("[" * 100_000, "generation_config.json: "),
        ('{"eos_token_id": "x"}', r"eos_token_id='x' must be a token id, a list of them or null"),
        ('{"eos_token_id": [2, null, "x"]}', r"eos_token_id=\[2, None, 'x'\] must be"),
        ('{"early_stopping": "x"}', "early_stopping"),
    ],
)
def test_a_broken_generation_config_is_refused_before_the_work(
    copy: Path, text: str, words: str
) -> None:
    (copy / "generation_config.json").write_text(text)
    with pytest.raises(OuroborosError, match=words) as caught:
        open_original(locate(str(copy)))
    assert "\n" not in str(caught.value)
