"""Tokens and sampling defaults of real models: what a bundle takes, leaves out, and says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from export import export_bundle
from export.errors import ExportError
from export.quantize.weights import check_block
from export.tokens import describe_tokens, name_unused
from ouroboros import OuroborosConfig, OuroborosForCausalLM, convert, load_checkpoint
from ouroboros.errors import ConfigError
from runtime import Engine
from runtime.bundle.reader import read_manifest
from tests.support.tiny import DIMENSIONS

OPTIONS: dict[str, Any] = {
    "prelude": 1, "coda": 2, "rank": 4, "max_depth": 3, "depth": 2, "recurrent": 2,
    "norm_init": "ones", "bridge": "none",
}  # fmt: skip
LAST = "the model's vocabulary, 0..258"


@pytest.fixture
def loaded(tiny_checkpoint: Path) -> tuple[OuroborosForCausalLM, Any]:
    return load_checkpoint(tiny_checkpoint)


def test_a_plain_checkpoint_has_nothing_to_say(loaded: Any) -> None:
    assert name_unused(*loaded) == []


@pytest.mark.parametrize(
    ("eos", "ids", "lines"),
    [
        (2, [2], []),
        ([2, 7, 2], [2, 7], []),
        ([7, 2], [7, 2], []),
        ([2, 259], [2], [f"left out: end-of-text id 259, outside {LAST}"]),
        ([-1, 2, 999], [2], [f"left out: end-of-text id {i}, outside {LAST}" for i in (-1, 999)]),
        (-1, [2], [f"left out: end-of-text id -1, outside {LAST}"]),
        ([], [2], []),
        (None, [2], []),
        (7, [7, 2], ["the tokenizer's <|im_end|> (2) ends a text too, beside [7] of the sampling"]),
    ],
)
def test_end_ids_outside_the_vocabulary_are_left_out(
    loaded: Any, eos: Any, ids: list[int], lines: list[str]
) -> None:
    model, tokenizer = loaded
    model.generation_config.eos_token_id = eos
    assert describe_tokens(Path("x"), model, tokenizer)["eos_token_ids"] == ids
    said = [line for line in name_unused(model, tokenizer) if line.startswith("left out")]
    assert said == [line for line in lines if line.startswith("left out")]
    if eos == 7:
        assert name_unused(model, tokenizer)[0].startswith(lines[0])


@pytest.mark.parametrize("eos", [259, [259], [999, 259, -1]])
def test_ends_that_are_all_of_another_model_are_refused(loaded: Any, eos: Any) -> None:
    model, tokenizer = loaded
    model.generation_config.eos_token_id = eos
    with pytest.raises(ExportError, match=r"eos_token_id (259|999) is outside .* 0\.\.258, and no"):
        describe_tokens(Path("x"), model, tokenizer)


def test_no_end_at_all_is_said(loaded: Any) -> None:
    model, tokenizer = loaded
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    tokenizer.eos_token = None
    assert describe_tokens(Path("x"), model, tokenizer)["eos_token_ids"] == []
    assert name_unused(model, tokenizer) == [
        "no end-of-text id is known: a text ends at its stop strings or its length"
    ]


def test_tokens_that_a_finetuner_added_are_left_out(loaded: Any) -> None:
    model, tokenizer = loaded
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "eos_token": "</s>"})
    tokens = describe_tokens(Path("x"), model, tokenizer)
    assert (tokens["pad_token_id"], tokens["eos_token"]) == (None, None)
    assert tokens["eos_token_ids"] == [2]
    assert sorted(name_unused(model, tokenizer)) == [
        f"left out: end-of-text id 260, outside {LAST}",
        f"left out: padding id 259, outside {LAST}",
    ] or sorted(name_unused(model, tokenizer)) == [
        f"left out: end-of-text id 259, outside {LAST}",
        f"left out: padding id 260, outside {LAST}",
    ]


def test_a_begin_that_is_added_must_be_in_the_vocabulary(loaded: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    model, tokenizer = loaded
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert describe_tokens(Path("x"), model, tokenizer)["bos_token_id"] is None
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    with pytest.raises(ExportError, match="puts token 259 before every text, outside") as caught:
        describe_tokens(Path("x"), model, tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, ""),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}, ""),
        ({"do_sample": False, "temperature": 0.7, "num_beams": 1}, ""),
        ({"do_sample": True, "temperature": 0.7}, "do_sample=True, temperature=0.7"),
        ({"do_sample": True, "top_k": 20, "top_p": 1.0}, "do_sample=True, top_k=20"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"suppress_tokens": [5]}, "suppress_tokens=[5]"),
        ({"suppress_tokens": []}, ""),
        ({"num_beams": 4, "no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3, num_beams=4"),
    ],
)
def test_sampling_defaults_that_are_not_taken_over_are_said(
    loaded: Any, values: dict[str, Any], named: str
) -> None:
    model, tokenizer = loaded
    model.generation_config = GenerationConfig(eos_token_id=2, **values)
    expected = f"not taken over from generation_config.json: {named}; the bundle is greedy"
    lines = name_unused(model, tokenizer)
    assert [line[: len(expected)] for line in lines] == ([expected] if named else [])


@pytest.mark.slow
def test_a_finetuned_model_with_all_of_them_converts_exports_and_runs(
    tiny_original: Path, tmp_path: Path
) -> None:
    """A pad token past the vocabulary, unknown ends and sampling defaults, from source to text."""
    source = tmp_path / "source"
    shutil.copytree(tiny_original, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "pad_token_id": 259}))
    defaults = {"eos_token_id": [2, 999], "do_sample": True, "temperature": 0.6, "pad_token_id": -1}
    (source / "generation_config.json").write_text(json.dumps(defaults))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(source)
    lines: list[str] = []
    convert(source, tmp_path / "checkpoint", report=lines.append, **OPTIONS)
    said = "its tokenizer has 1 tokens beyond the model's 259: '[PAD]' (259); text that holds one"
    assert any(line.startswith(said) for line in lines)
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", report=lines.append)
    assert f"left out: end-of-text id 999, outside {LAST}" in lines
    tokens = read_manifest(tmp_path / "bundle").tokenizer
    assert (tokens.eos_token_ids, tokens.pad_token_id) == ((2,), None)
    with (
        Engine.open(tmp_path / "bundle", threads=1) as engine,
        pytest.warns(UserWarning, match="never trained"),
    ):
        assert engine.generate("Hello", max_new_tokens=3)


@pytest.mark.slow
def test_more_rows_than_tokens_export(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As Qwen2 has them, and as resized embeddings leave them: nothing to say."""
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    model.resize_token_embeddings(288, mean_resizing=False)
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    lines: list[str] = []
    export_bundle(tmp_path / "checkpoint", tmp_path / "out", max_depth=2, report=lines.append)
    assert read_manifest(tmp_path / "out").model.vocab_size == 288
    assert [line for line in lines if "left out" in line] == []


@pytest.mark.parametrize(
    ("block", "inputs", "odd", "allowed"),
    [
        (32, [80, 80, 256], "80", ""),
        (32, [64, 200, 80, 100], "80, 100 and 200", ""),
        (64, [96, 80], "80 and 96", ""),
        (128, [64, 192], "64 and 192", "32, 64"),
    ],
)
def test_sizes_that_no_block_divides_name_what_to_do(
    block: int, inputs: list[int], odd: str, allowed: str
) -> None:
    none = ", and none of 32, 64, 128 fits all of them; export with --precision fp32, fp16 or bf16"
    rest = f"; allowed: {allowed}" if allowed else none
    with pytest.raises(ExportError) as caught:
        check_block(block, inputs)
    assert str(caught.value) == (
        f"block_size={block} does not fit this model's matrices: {odd} inputs can't be cut into "
        f"blocks of {block}{rest}"
    )
    check_block(32, [64, 192])


def test_a_hidden_size_of_80_is_refused_at_int4_with_what_to_do(tmp_path: Path) -> None:
    import copy

    from export.quantize.model import Quantization, quantize_model

    base = LlamaConfig(**{**DIMENSIONS, "hidden_size": 80, "intermediate_size": 160})
    config = OuroborosConfig(base_config=base, prelude=1, coda=2, rank=2, max_depth=3, depth=2)
    model = OuroborosForCausalLM(config).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ExportError, match=r": 80 inputs .* --precision fp32, fp16 or bf16"):
        quantize_model(model, Quantization(4))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4, "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    "rope", [{"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, LONG], ids=str
)
def test_what_an_export_would_refuse_is_refused_by_the_conversion(
    tmp_path: Path, rope: dict[str, Any]
) -> None:
    from export.graph.stitch import build_graph

    torch.manual_seed(0)
    config = LlamaConfig(**DIMENSIONS, rope_parameters=rope)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    words = f"RoPE scaling '{rope['rope_type']}' changes with .* can't be exported; allowed are def"
    with pytest.raises(ConfigError, match=words):
        convert(tmp_path / "source", tmp_path / "out", **OPTIONS)
    options = {"prelude": 1, "coda": 2, "rank": 4, "max_depth": 3, "depth": 2}
    model = OuroborosForCausalLM(OuroborosConfig(base_config=config, **options)).eval()
    with pytest.raises(ExportError, match=words):
        build_graph(model, 2)


@pytest.mark.parametrize("heads", [3, 8])
def test_heads_that_can_not_share_keys_are_refused(heads: int) -> None:
    config = LlamaConfig(**{**DIMENSIONS, "num_key_value_heads": heads})
    with pytest.raises(ConfigError, match=f"=4 is no multiple of num_key_value_heads={heads}"):
        OuroborosConfig(base_config=config, prelude=1, coda=2, rank=2, max_depth=3, depth=2)
