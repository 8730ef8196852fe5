"""What is not converted: bad options, other architectures, damaged sources, unfit texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    MistralConfig,
    Qwen2Config,
)

from ouroboros import OuroborosConfig, convert
from ouroboros.errors import CheckpointError, ConfigError, DataError
from tests.support.tiny import DIMENSIONS, SMALL


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prelude": 3, "coda": 3}, "leave nothing to replace"),
        ({"recurrent": 17}, r"layers 0\.\.5"),
        ({"recurrent": 1}, r"replaced layers 2\.\.3"),
        ({"recurrent": "3-2"}, r"recurrent=3-2 runs backwards: .*; give 2-3"),
        ({"recurrent": "2,3"}, r"'2,3' is neither auto nor .* consecutive ones; give one such as"),
        (
            {"recurrent": "2-"},
            r"'2-' is neither auto nor the number of a layer, .* 18-21, auto:4 or none",
        ),
        ({"recurrent": "-2-3"}, r"'-2-3' is neither"),
        ({"recurrent": "1-2"}, r"recurrent layers 1-2 reach into .*; choose a block of .* 2\.\.3"),
        ({"recurrent": "3-4"}, r"recurrent layers 3-4 reach into the prelude or coda"),
        ({"recurrent": "3-9"}, r"recurrent layers 3-9 are out of range; .* layers 0\.\.5"),
        ({"recurrent": "auto:0"}, r"recurrent=auto:0 asks for a block of 0 layers; give 1 or more"),
        ({"recurrent": "auto:x"}, r"'auto:x' is neither"),
        ({"recurrent": "auto:3"}, r"block of 3 layers, .* leave 2; give a block of 1\.\.2, or"),
        ({"prelude": -1}, "negative"),
        ({"rank": 0}, r"rank=0 is outside 1\.\."),
        ({"rank": 99}, r"rank=99 is outside 1\.\."),
        ({"depth": 7}, r"depth=7 is outside"),
        ({"depth": 0}, r"depth=0 is outside"),
        ({"pooling": "max"}, "causal, mean, token"),
        ({"norm_init": "x"}, "matched, ones"),
        ({"bases": "x"}, "mean, per_step"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_bad_options_are_refused(
    tiny_original: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        convert(str(tiny_original), tmp_path / "out", **{**SMALL, "recurrent": 3, **options})
    assert list(tmp_path.iterdir()) == []


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    GPT2Config(n_layer=4).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match=r"'gpt2' .* llama, mistral, qwen2, qwen3"):
        convert(str(tmp_path / "gpt2"), tmp_path / "out")


@pytest.mark.parametrize(
    "base",
    [
        MistralConfig(**DIMENSIONS, sliding_window=64),
        Qwen2Config(**DIMENSIONS, use_sliding_window=True, sliding_window=64, max_window_layers=2),
    ],
    ids=["mistral", "qwen2"],
)
def test_active_sliding_windows_are_refused_by_name(base: Any) -> None:
    with pytest.raises(ConfigError, match="sliding-window attention"):
        OuroborosConfig(base_config=base, **SMALL)


def test_damaged_sources_are_refused(tiny_original: Path, tmp_path: Path) -> None:
    for name, damage in (("cut", _cut), ("gone", _remove), ("nan", _spoil), ("lost", _lose)):
        copy = tmp_path / name
        shutil.copytree(tiny_original, copy)
        damage(copy / "model.safetensors")
        with pytest.raises(CheckpointError) as caught:
            convert(str(copy), tmp_path / "out", **SMALL)
        assert "\n" not in str(caught.value)
    for missing in (tmp_path / "nowhere", tmp_path / "x.gguf", tmp_path):
        with pytest.raises(CheckpointError):
            convert(str(missing), tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def _remove(file: Path) -> None:
    file.unlink()


def _spoil(file: Path) -> None:
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


def _lose(file: Path) -> None:
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def test_short_calibration_text_is_refused(tiny_original: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    given = {**SMALL, "calibration": tmp_path / "short.txt"}
    with pytest.raises(DataError, match=r"shorter than one window of \d+; give a longer text"):
        convert(str(tiny_original), tmp_path / "out", **given)
    supported = r"of \d+, which supports a map of rank 9, and the bridge has \d+ rows; give a long"
    with pytest.raises(DataError, match=supported):
        convert(str(tiny_original), tmp_path / "out", **given | {"bridge": "entry"})


def test_calibration_text_is_looked_for_before_the_weights(
    tiny_original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(place: object) -> None:
        raise AssertionError("the weights are read")

    monkeypatch.setattr("ouroboros.conversion.convert.open_original", fail)
    with pytest.raises(DataError, match=r"none\.txt"):
        convert(str(tiny_original), tmp_path / "out", calibration=tmp_path / "none.txt", **SMALL)
    # Nothing is measured, so it is not needed.
    with pytest.raises(AssertionError, match="weights are read"):
        convert(
            str(tiny_original), tmp_path / "out", calibration=tmp_path / "none.txt", recurrent=3,
            **{**SMALL, "bridge": "none", "norm_init": "ones"},
        )  # fmt: skip


def test_calibration_text_with_a_token_the_model_lacks_is_refused(
    tiny_original: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_original, copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    most = max(one["id"] for one in tokenizer["added_tokens"])
    most = max(most, *tokenizer["model"]["vocab"].values())
    extra = {**tokenizer["added_tokens"][0], "id": most + 1, "content": "<|foreign|>"}
    tokenizer["added_tokens"].append(extra)
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "text.txt").write_text("Some words and <|foreign|> ones. " * 40)
    with pytest.raises(DataError, match=rf"text\.txt: the tokenizer gives token id {most + 1}"):
        convert(str(copy), tmp_path / "out", calibration=tmp_path / "text.txt", **SMALL)
