"""What a config says against what the weight files hold: nothing is dropped or made up unsaid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from ouroboros import convert, load_checkpoint
from ouroboros.errors import SourceError
from ouroboros.source.locate import load_source, locate
from ouroboros.source.weights import open_original
from tests.support.tiny import DIMENSIONS, EMBEDDING, OPTIONS

HEAD = "lm_head.weight"
LAYER = "model.layers.3."
Tensors = dict[str, torch.Tensor]


def build(config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def edit(folder: Path, change: Callable[[Tensors], Any], **config: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def nothing(tensors: Tensors) -> None:
    pass


def add_other_head(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBEDDING] * 2


def add_late_other_head(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()
    tensors[HEAD][-1, -1] += 1


def add_layer(tensors: Tensors) -> None:
    for name in [n for n in tensors if n.startswith("model.layers.5.")]:
        tensors[name.replace(".5.", ".6.")] = tensors[name].clone()


CASES: list[tuple[str, Callable[[Tensors], Any], dict[str, Any], str]] = [
    ("head", add_other_head, {}, r"tie_word_embeddings is true .*lm_head.weight differs from the"),
    ("late head", add_late_other_head, {}, r"lm_head.weight differs from the embedding; set it to"),
    (
        "no head",
        nothing,
        {"tie_word_embeddings": False},
        r"tie_word_embeddings is false .*hold no lm_head.weight; set it to true if",
    ),
    (
        "bias",
        lambda t: t.update({f"{LAYER}self_attn.q_proj.bias": torch.ones(64)}),
        {},
        r"hold model.layers.3.self_attn.q_proj.bias, which attention_bias=false .* leave out",
    ),
    (
        "mlp bias",
        lambda t: t.update({f"{LAYER}mlp.{n}_proj.bias": torch.ones(96) for n in ("up", "gate")}),
        {},
        r"gate_proj.bias and 1 more, which mlp_bias=false of config.json would leave out",
    ),
    (
        "no bias",
        nothing,
        {"attention_bias": True},
        r"24 weights are missing, .*k_proj.bias first, which attention_bias=true of config.json as",
    ),
    ("no mlp bias", nothing, {"mlp_bias": True}, r"18 weights .* which mlp_bias=true of config"),
    (
        "more layers",
        nothing,
        {"num_hidden_layers": 4},
        r"hold layers 0..5, config.json says num_hidden_layers=4; config.json and the weights",
    ),
    ("fewer layers", nothing, {"num_hidden_layers": 8}, r"layers 0..5, .*num_hidden_layers=8"),
    ("one more layer", add_layer, {}, r"hold layers 0..6, config.json says num_hidden_layers=6"),
    (
        "norms of qwen3",
        lambda t: t.update({f"{LAYER}self_attn.q_norm.weight": torch.ones(16)}),
        {},
        r"hold model.layers.3.self_attn.q_norm.weight, which a llama with this config.json does no",
    ),
    ("no norms", nothing, {"model_type": "qwen3"}, "weights are missing, .*k_norm.weight first"),
    (
        "value head",
        lambda t: t.update({"v_head.summary.weight": torch.ones(1, 64)}),
        {},
        r"hold v_head.summary.weight, which a llama with this config.json does not read",
    ),
    (
        "quantised by name",
        lambda t: t.update({f"{LAYER}mlp.up_proj.qweight": torch.ones(8, 96).int()}),
        {},
        r"up_proj.qweight is of a quantised model, though config.json has no quantization_config",
    ),
]
SHAPES: list[tuple[dict[str, Any], str]] = [
    (
        {"vocab_size": 300},
        r"embed_tokens.weight is \[259, 64\], by its config \[300, 64\].*vocab_s",
    ),
    ({"vocab_size": 200}, r"embed_tokens.weight is \[259, 64\], by its config \[200, 64\]"),
    ({"num_key_value_heads": 4}, r"k_proj.weight is \[32, 64\], .*\[64, 64\].*num_key_value_heads"),
    ({"head_dim": 8}, r"q_proj.weight is \[64, 64\], by its config \[32, 64\].*and head_dim"),
    ({"intermediate_size": 128}, r"_proj.weight is \[.*see intermediate_size"),
    ({"hidden_size": 128, "head_dim": 16}, r"is \[.*, by its config \[.*not of one model"),
]


@pytest.mark.parametrize(
    ("change", "config", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
@pytest.mark.parametrize("form", ["safetensors", "pickled"])
def test_what_config_and_files_disagree_on_is_refused(
    copy: Path, change: Any, config: dict[str, Any], words: str, form: str
) -> None:
    edit(copy, change, **config)
    if form == "pickled":
        pickle_weights(copy)
    with pytest.raises(SourceError, match=words) as caught:
        open_original(locate(str(copy)))
    assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match=words):
        load_source(str(copy))


@pytest.mark.parametrize(("config", "words"), SHAPES)
def test_shapes_name_the_fields_they_follow_from(
    copy: Path, config: dict[str, Any], words: str
) -> None:
    edit(copy, nothing, **config)
    with pytest.raises(SourceError, match=words) as caught:
        open_original(locate(str(copy)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "pickled"])
def test_what_carries_nothing_is_passed_over(copy: Path, tmp_path: Path, form: str) -> None:
    """An equal head, rotary buffers of older versions; and, read in parts, biases of zeros."""
    convert(copy, tmp_path / "expected", **OPTIONS)

    def add(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[EMBEDDING].clone()
        for layer in range(6):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
            if form == "safetensors":
                tensors[f"model.layers.{layer}.self_attn.o_proj.bias"] = torch.zeros(64)

    edit(copy, add)
    if form == "pickled":
        pickle_weights(copy)
    convert(copy, tmp_path / "out", **OPTIONS)
    found, expected = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_biases_that_the_config_names_are_kept(tmp_path: Path) -> None:
    kinds = (
        LlamaConfig(**DIMENSIONS, attention_bias=True, mlp_bias=True),
        Qwen2Config(**DIMENSIONS),
    )
    for number, config in enumerate(kinds):
        folder = build(config, tmp_path / f"source{number}")

        def fill(tensors: Tensors) -> None:
            for name in [n for n in tensors if n.endswith("bias")]:
                tensors[name] = torch.randn(tensors[name].shape)

        edit(folder, fill)
        convert(folder, tmp_path / f"out{number}", **OPTIONS)
        model, _ = load_checkpoint(tmp_path / f"out{number}")
        held = load_file(folder / "model.safetensors")
        bias = model.coda[1].self_attn.q_proj.bias
        assert torch.equal(bias, held["model.layers.5.self_attn.q_proj.bias"])


def test_bias_that_no_qwen_reads_is_refused_by_its_type(tmp_path: Path) -> None:
    folder = build(Qwen2Config(**DIMENSIONS), tmp_path / "source")
    edit(folder, lambda t: t.update({f"{LAYER}self_attn.o_proj.bias": torch.ones(32)}))
    with pytest.raises(SourceError, match=r"which model_type=qwen2 of config.json would leave"):
        open_original(locate(str(folder)))


def test_head_dim_against_the_norms_of_qwen3(tmp_path: Path) -> None:
    """Four heads of 16 and two of 32 make the same projections; the norms tell them apart."""
    folder = build(Qwen3Config(**DIMENSIONS, head_dim=16), tmp_path / "source")
    edit(folder, nothing, head_dim=32, num_attention_heads=2, num_key_value_heads=1)
    words = r"_norm.weight is \[16\], by its config \[32\].*see head_dim"
    with pytest.raises(SourceError, match=words):
        open_original(locate(str(folder)))


def test_a_base_model_without_a_head_is_read_where_it_is_tied(copy: Path, tmp_path: Path) -> None:
    """As `model.model.save_pretrained` writes it: no prefix."""
    convert(copy, tmp_path / "expected", **OPTIONS)
    edit(copy, lambda t: [t.update({n.removeprefix("model."): t.pop(n)}) for n in list(t)])
    convert(copy, tmp_path / "out", **OPTIONS)
    found, expected = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "expected"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    edit(copy, nothing, tie_word_embeddings=False)
    with pytest.raises(SourceError, match="tie_word_embeddings is false"):
        open_original(locate(str(copy)))


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_quantised_matrices_without_a_word_in_the_config_are_refused(copy: Path, kind: Any) -> None:
    name = f"{LAYER}mlp.up_proj.weight"
    edit(copy, lambda t: t.update({name: t[name].to(kind)}))
    with pytest.raises(SourceError, match=r"up_proj.weight is .*, allowed: .* are quantised"):
        open_original(locate(str(copy)))


def rename(old: str, new: str) -> Callable[[Tensors], Any]:
    return lambda t: [t.update({n.replace(old, new): t.pop(n)}) for n in list(t) if old in n]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.update({f"{LAYER}self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}),
            r"lora_A.weight is of an adapter that was not merged; merge it",
        ),
        (rename("q_proj.", "q_proj.base_layer."), r"base_layer.weight is of an adapter that was n"),
        (
            rename("model.", "module.model."),
            r"56 weights are missing, .* first, and the files hold module.model.embed_tok",
        ),
    ],
    ids=["lora", "base layer", "module"],
)
def test_names_of_other_tools_are_said(copy: Path, change: Any, words: str) -> None:
    edit(copy, change)
    with pytest.raises(SourceError, match=words) as caught:
        open_original(locate(str(copy)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pad", [259, 300, -1])
@pytest.mark.parametrize("form", ["safetensors", "pickled"])
def test_padding_ids_that_nobody_uses_convert(
    copy: Path, tmp_path: Path, pad: int, form: str
) -> None:
    """A finetuner's pad token past the last row, and Llama 1's -1."""
    edit(copy, nothing, pad_token_id=pad)
    if form == "pickled":
        pickle_weights(copy)
    convert(copy, tmp_path / "out", **OPTIONS)
    assert load_checkpoint(tmp_path / "out")[0].config.pad_token_id == pad


def test_sampling_values_in_an_old_config_are_said_where_they_do_nothing(
    copy: Path, tmp_path: Path
) -> None:
    edit(copy, nothing, temperature=0.6, top_k=20)
    (copy / "generation_config.json").unlink()
    convert(copy, tmp_path / "out", **OPTIONS)
    load_checkpoint(tmp_path / "out")
