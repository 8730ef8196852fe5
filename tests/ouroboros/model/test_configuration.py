"""What a config may hold: types, ranges, the original model's part, and one line for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from ouroboros import OuroborosConfig
from ouroboros.checkpoint import read_config
from ouroboros.errors import CheckpointError, ConfigError
from tests.support.tiny import DIMENSIONS, SMALL

BASE: dict[str, Any] = {"model_type": "llama", **DIMENSIONS, "tie_word_embeddings": False}
# As the hub has them: keys of older versions, and some that no architecture reads.
LEGACY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "rope_theta": 5000.0,
    "rope_scaling": None,
    "_name_or_path": "somewhere",
    "auto_map": {"AutoConfig": "code.Config"},
    "is_llama_config": True,
    "use_mrope": False,
    "unk_token_id": 0,
    "temperature": 0.6,
}


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_configs_of_the_hub_convert_and_read_back(kind: Any, tmp_path: Path) -> None:
    values = {**BASE, **LEGACY, "model_type": kind.model_type, "sliding_window": None}
    config = OuroborosConfig(base_config=kind.from_dict(values), **SMALL)
    assert config.base().rope_parameters["rope_theta"] == 5000.0
    config.save_pretrained(tmp_path)
    again = read_config(tmp_path)
    assert again.base_config == config.base_config
    assert "use_mrope" not in again.base_config
    assert again.vocab_size == 90


def test_scaled_rope_of_an_older_config_is_kept() -> None:
    scaling = {"type": "linear", "factor": 2.0}
    config = OuroborosConfig(base_config=LlamaConfig(**BASE, rope_scaling=scaling), **SMALL)
    assert config.base().rope_parameters["rope_type"] == "linear"
    assert config.base().rope_parameters["factor"] == 2.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gate": "yes"}, r"gate='yes' must be true or false"),
        ({"gate": 2}, r"gate=2 must be true or false"),
        ({"prelude": True}, r"prelude=True must be a whole number"),
        ({"rank": "x"}, r"rank='x' must be a whole number"),
        ({"depth": 3.0}, r"depth=3.0 must be a whole number"),
        ({"recurrent": None}, r"recurrent=None must be a whole number"),
        ({"recurrent_layers": "2"}, r"recurrent_layers='2' must be a whole number"),
        ({"recurrent_layers": -1}, r"recurrent_layers=-1 is negative; give 0"),
        (
            {"recurrent_layers": 2},
            r"layers 3-4 reach into the prelude or coda; choose a block of .* layers 2\.\.3",
        ),
        ({"recurrent": 1, "recurrent_layers": 3}, r"layers 1-3 reach into the prelude or coda"),
        ({"recurrent_layers": 4}, r"layers 3-6 are out of range; the model has layers 0\.\.5"),
        ({"alpha": float("inf")}, r"alpha=inf must be a finite number"),
        ({"alpha": float("nan")}, r"alpha=nan must be a finite number"),
        ({"alpha": "16"}, r"alpha='16' must be a finite number"),
        ({"pooling": ["causal"]}, r"pooling=\['causal'\] is unknown; choose one of causal, mean"),
        ({"trained_depths": ["a"]}, r"trained_depths=\['a'\] must be a list of whole numbers"),
        ({"trained_depths": 3}, r"trained_depths=3 must be a list"),
        ({"trained_depths": [-3, 2]}, r"trained_depths holds -3, outside 1\.\.6"),
        ({"trained_depths": [2, 99]}, r"trained_depths holds 99, outside 1\.\.6"),
        ({"source": ["x"]}, r"source=\['x'\] must be an object of texts"),
        ({"eos_token_id": "x"}, r"eos_token_id='x' must be a token id, a list of them or null"),
        ({"eos_token_id": [1, None]}, r"eos_token_id=\[1, None\] must be"),
        ({"use_cache": "no"}, r"use_cache='no' must be true or false"),
        ({"max_position_embeddings": 0}, r"max_position_embeddings=0 disagrees with .* 256"),
        ({"tie_word_embeddings": True}, r"tie_word_embeddings=True disagrees with .* False"),
        ({"dtype": "float99"}, r"float99"),
        ({"base_config": "llama"}, r"base_config='llama' must be an object"),
        ({"base_config": {}}, r"has no base_config"),
        ({"base_config": {**BASE, "halting": True}}, r"base_config has unknown keys halting"),
        ({"base_config": {**BASE, "model_type": "mambo"}}, r"'mambo' can't be converted; .*llama"),
        ({"base_config": {**BASE, "hidden_size": 0}}, r"hidden_size=0 must be a whole number abov"),
        ({"base_config": {**BASE, "hidden_size": "x"}}, r"hidden_size='x' must be a whole number"),
        ({"base_config": {**BASE, "hidden_size": 33}}, r"base_config: .*\(33\) is not a multiple"),
        ({"base_config": {**BASE, "attention_bias": "x"}}, r"base_config: .*attention_bias"),
        ({"base_config": {**BASE, "eos_token_id": "x"}}, r"base_config: .*eos_token_id"),
        (
            {"base_config": {**BASE, "max_position_embeddings": 0}},
            r"max_position_embeddings=0 must",
        ),
        ({"base_config": {**BASE, "hidden_act": "foo"}}, r"hidden_act='foo' is unknown; .*silu"),
        ({"base_config": {**BASE, "rms_norm_eps": float("nan")}}, r"rms_norm_eps=nan must be"),
        ({"base_config": {**BASE, "attention_dropout": 5.0}}, r"attention_dropout=5\.0 must be"),
        (
            {"base_config": {**BASE, "partial_rotary_factor": 0.5}},
            r"partial_rotary_factor=0\.5 turns a part of each head",
        ),
        ({"base_config": {**BASE, "rope_parameters": {"rope_type": "foo"}}}, r"rope_type='foo' is"),
        ({"base_config": {**BASE, "rope_scaling": {"type": "foo"}}}, r"rope_type='foo' is unknown"),
        ({"base_config": {**BASE, "rope_parameters": 3}}, r"rope_parameters=3 must be an object"),
        ({"base_config": {**BASE, "rope_theta": 0}}, r"rope_theta=0 must be a finite number above"),
        (
            {"base_config": {**BASE, "rope_parameters": {"rope_type": "linear", "factor": "x"}}},
            r"factor='x' in rope_parameters must be a finite number",
        ),
        ({"base_config": {**BASE, "rope_parameters": {"rope_type": "linear"}}}, r"factor"),
        ({"bases": "per_step", "prelude": 3}, r"bases=per_step needs a removed layer"),
        (
            {"bases": "per_step", "recurrent": 2, "recurrent_layers": 2},
            r"bases=per_step needs a removed layer for every looped one, .* none for layer 2",
        ),
    ],
)
def test_bad_values_are_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    OuroborosConfig(base_config=BASE, **SMALL).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "recurrent": 3, **changes}))
    capfd.readouterr()
    with pytest.raises(ConfigError, match=words) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert capfd.readouterr().err == ""


def test_config_of_before_loops_one_layer(tmp_path: Path) -> None:
    OuroborosConfig(base_config=BASE, **SMALL).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    del fields["recurrent_layers"]
    file.write_text(json.dumps(fields))
    assert read_config(tmp_path).recurrent_layers == 1


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="can't be read as JSON"):
        read_config(tmp_path)
