"""Checkpoints of strangers: refused in one line, before they cost memory or have code fetched."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ouroboros.checkpoint import load_checkpoint
from ouroboros.errors import CheckpointError, ConfigError, DataError, OuroborosError
from ouroboros.inspection import inspect_checkpoint
from ouroboros.source.locate import load_source, locate
from ouroboros.text.boundaries import encode, prefix_ids
from ouroboros.text.windows import pack_documents

PANIC = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}  # tokenizers breaks off in Rust
STUCK = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}  # once it has to encode


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, path)
    return path


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))


def widen(fields: dict[str, Any], size: int) -> None:
    fields["base_config"]["vocab_size"] = fields["vocab_size"] = size


def test_sizes_that_the_weights_do_not_have_cost_no_memory(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **extra: object) -> None:
        raise AssertionError("transformers makes room for what config.json asks for")

    monkeypatch.setattr("ouroboros.model.modeling.OuroborosForCausalLM.from_pretrained", load)
    edit_json(copy / "config.json", lambda fields: widen(fields, 10**7))
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight: \[259, 64\] instead of \[1"):
        load_checkpoint(copy)


def test_sizes_of_no_model_are_refused(copy: Path) -> None:
    edit_json(copy / "config.json", lambda fields: widen(fields, 10**30))
    words = "no model can be built as config.json says"
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_checkpoint(copy)
    assert words in str(inspect_checkpoint(copy).problem)


def test_a_number_of_labels_is_refused_before_there_is_a_list_of_them(
    copy: Path, tiny_original: Path, tmp_path: Path
) -> None:
    original = tmp_path / "original"
    shutil.copytree(tiny_original, original)
    for folder, read in ((copy, load_checkpoint), (original, locate)):
        edit_json(folder / "config.json", lambda fields: fields.update(num_labels=10**6))
        tracemalloc.start()
        with pytest.raises(ConfigError, match="num_labels=1000000 is above 65,536"):
            read(folder)
        assert tracemalloc.get_traced_memory()[1] < 10**7
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["attn_implementation", "_attn_implementation", "experts_implementation"]
)
def test_a_file_may_not_choose_a_kernel(
    copy: Path, tiny_original: Path, tmp_path: Path, name: str
) -> None:
    """transformers takes such a name for a kernel of the hub's, fetches it and runs it."""
    edit_json(copy / "config.json", lambda fields: fields.update({name: "stranger/kernel"}))
    with pytest.raises(ConfigError, match="is for the one who loads it to choose; take it out"):
        load_checkpoint(copy)
    original = tmp_path / "original"
    shutil.copytree(tiny_original, original)
    edit_json(original / "config.json", lambda fields: fields.update({name: "stranger/kernel"}))
    config = locate(original).config
    assert config._attn_implementation is None
    assert config._experts_implementation is None
    load_source(original)


def test_a_tensor_in_two_files_is_refused(copy: Path) -> None:
    """transformers takes the last, whatever the index says."""
    tensors = load_file(copy / "model.safetensors")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (copy / "model.safetensors").rename(copy / names[0])
    save_file({"norm.weight": tensors["norm.weight"] * 2}, copy / names[1], {"format": "pt"})
    weight_map = {**dict.fromkeys(tensors, names[0]), "norm": names[1]}
    index = {"metadata": {}, "weight_map": weight_map}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"holds norm\.weight, which the checkpoint holds el"):
        load_checkpoint(copy)


def test_an_index_that_names_nothing_is_refused(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="names no file"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"eos_token_id": 2', r"generation_config\.json: Expecting"),
        ("[1]", "it holds a list, not an object"),
        ('{"eos_token_id": "two"}', "eos_token_id='two' must be a token id"),
        ('{"max_new_tokens": -5}', r"generation_config\.json: .*greater than 0"),
    ],
)
def test_broken_sampling_defaults_are_not_passed_over(copy: Path, content: str, words: str) -> None:
    (copy / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(copy)


def test_what_is_no_weight_file_does_not_damage_a_checkpoint(copy: Path) -> None:
    (copy / "more.safetensors").mkdir()
    (copy / "gone.safetensors").symlink_to("nowhere")
    assert inspect_checkpoint(copy).problem is None


def test_a_tokenizer_that_breaks_off_is_named(copy: Path, tiny_original: Path) -> None:
    original = copy.with_name("original")
    shutil.copytree(tiny_original, original)
    for folder, read in ((copy, load_checkpoint), (original, load_source)):
        edit_json(folder / "tokenizer.json", lambda fields: fields.update(normalizer=PANIC))
        with pytest.raises(OuroborosError, match=r"can't load (the|its) tokenizer: Precompiled"):
            read(folder)


def test_a_tokenizer_that_can_not_encode_is_named(copy: Path) -> None:
    file = copy / "tokenizer.json"
    edit_json(file, lambda fields: fields.update(normalizer=STUCK))
    _, tokenizer = load_checkpoint(copy)
    for ask in (encode, lambda tokenizer, _: prefix_ids(tokenizer)):
        with pytest.raises(DataError, match="the tokenizer can't turn text into tokens: index out"):
            ask(tokenizer, ["some text"])
    edit_json(file, lambda fields: fields.update(normalizer=None))
    edit_json(file, lambda fields: fields["model"].update(vocab={}, unk_token="none"))
    _, tokenizer = load_checkpoint(copy)
    with pytest.raises(
        DataError, match=r"into tokens: .* not found in the vocabulary; put the mod"
    ):
        encode(tokenizer, ["some text"])


def test_ids_too_large_for_windows_are_named(copy: Path) -> None:
    begin = {"SpecialToken": {"id": "X", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"X": {"id": "X", "ids": [2**32 - 1], "tokens": ["X"]}}
    processor = {
        "type": "TemplateProcessing", "single": [begin, text], "pair": [],
        "special_tokens": special,
    }  # fmt: skip
    edit_json(copy / "tokenizer.json", lambda fields: fields.update(post_processor=processor))
    _, tokenizer = load_checkpoint(copy)
    with pytest.raises(DataError, match="gives token id 4294967295"):
        pack_documents(["some text " * 9], tokenizer, 16)
