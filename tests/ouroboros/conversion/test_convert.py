"""Model surgery: what is kept, bases, matched norms, and the selection of a layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
)

from ouroboros import OuroborosConfig, convert, load_checkpoint
from ouroboros.conversion.bases import top_vectors, truncated_svd
from ouroboros.conversion.selection import match_step_norms
from ouroboros.model.prelude import run_prelude
from ouroboros.source.locate import drop_middle, load_source
from tests.support.tiny import DIMENSIONS, SMALL

# Mistral, Qwen2 and Qwen3 are among the bundles of tests/conformance.
KINDS_OF_LLAMA = [
    LlamaConfig(**DIMENSIONS, attention_bias=True),
    LlamaConfig(
        **DIMENSIONS,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
]


def test_conversion_keeps_prelude_and_coda(tiny_original: Path, tmp_path: Path) -> None:
    report = convert(str(tiny_original), tmp_path / "out", recurrent=3, **SMALL)
    model, tokenizer = load_checkpoint(tmp_path / "out")
    original = AutoModelForCausalLM.from_pretrained(tiny_original)
    for mine, theirs in ((model.prelude[1], 1), (model.coda[0], 4), (model.coda[1], 5)):
        for name, weight in original.model.layers[theirs].state_dict().items():
            assert torch.equal(mine.state_dict()[name], weight)
    looped = model.recurrent.layers[0].self_attn.q_proj.weight
    assert torch.equal(looped, original.model.layers[3].self_attn.q_proj.weight)
    assert tokenizer is not None
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert "layers 4..5" in report.text
    assert (tmp_path / "out" / "LICENSE").read_text().startswith("The licence of the tiny model")
    assert (tmp_path / "out" / "ATTRIBUTION").is_file()


def test_mean_bases_are_the_best_rank_r_match(tiny_original: Path, tmp_path: Path) -> None:
    convert(str(tiny_original), tmp_path / "out", recurrent=3, **SMALL)
    model, _ = load_checkpoint(tmp_path / "out")
    layers = AutoModelForCausalLM.from_pretrained(tiny_original).model.layers
    weights = [layer.mlp.down_proj.weight for layer in layers]
    residual = (weights[2] - weights[3]).detach()  # removed: 2 and 3, the recurrent one skipped
    down = model.recurrent.projections()[0]["down_proj"]
    product = down.lora_b[0] @ down.lora_a[0]
    singular = torch.linalg.svdvals(residual)
    error = torch.linalg.matrix_norm(residual - product)
    torch.testing.assert_close(error, singular[4:].norm(), rtol=1e-4, atol=1e-5)


def test_per_step_bases_take_each_removed_layer_in_turn(
    tiny_original: Path, tmp_path: Path
) -> None:
    options = {**SMALL, "prelude": 1, "coda": 1, "bases": "per_step"}
    convert(str(tiny_original), tmp_path / "out", recurrent=2, **options)
    model, _ = load_checkpoint(tmp_path / "out")
    layers = AutoModelForCausalLM.from_pretrained(tiny_original).model.layers
    q = model.recurrent.projections()[0]["q_proj"]
    assert q.lora_a.shape == (3, 4, 64)
    for base, removed in enumerate((1, 3, 4)):
        residual = layers[removed].self_attn.q_proj.weight - layers[2].self_attn.q_proj.weight
        a, b = truncated_svd(residual.detach(), 4)
        torch.testing.assert_close(q.lora_b[base] @ q.lora_a[base], b @ a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bases", ["mean", "per_step"])
def test_block_takes_its_layers_and_deals_out_the_removed(
    tiny_original: Path, tmp_path: Path, bases: str
) -> None:
    """Layers 2-3 of 0..4: 0 and 4 are layer 2's by their numbers, 1 is layer 3's."""
    options = {**SMALL, "prelude": 0, "coda": 1, "bases": bases}
    report = convert(str(tiny_original), tmp_path / "out", recurrent="2-3", **options)
    model, _ = load_checkpoint(tmp_path / "out")
    layers = AutoModelForCausalLM.from_pretrained(tiny_original).model.layers
    dealt = ([0, 4], [1])
    for place, (own, removed) in enumerate(zip((2, 3), dealt, strict=True)):
        looped: Any = model.recurrent.layers[place]
        assert torch.equal(looped.mlp.up_proj.weight, layers[own].mlp.up_proj.weight)
        residuals = [
            (layers[one].self_attn.q_proj.weight - layers[own].self_attn.q_proj.weight).detach()
            for one in removed
        ]
        if bases == "mean":
            residuals = [torch.stack(residuals).mean(0)]
        q = model.recurrent.projections()[place]["q_proj"]
        assert len(q.lora_a) == len(residuals)
        for base, residual in enumerate(residuals):
            a, b = truncated_svd(residual, 4)
            torch.testing.assert_close(q.lora_b[base] @ q.lora_a[base], b @ a, rtol=1e-4, atol=1e-5)
    assert report.dropped_layers == (0, 1, 4)
    assert "recurrent  layers 2-3, looped" in report.text


@pytest.mark.parametrize("modulation", ["free", "none"])
def test_what_has_no_bases_says_so(tiny_original: Path, tmp_path: Path, modulation: str) -> None:
    options = {**SMALL, "modulation": modulation}
    report = convert(str(tiny_original), tmp_path / "out", recurrent=3, **options)
    model, _ = load_checkpoint(tmp_path / "out")
    assert report.bases == 0
    assert "bases      none" in report.text
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    ids = torch.arange(3, 20)[None]
    plain = convert(str(tiny_original), tmp_path / "plain", recurrent=3, **SMALL)
    with_controller, _ = load_checkpoint(tmp_path / "plain")
    # Nothing is added at first, in whatever way it will be added.
    assert torch.equal(model(ids, depth=3).logits, with_controller(ids, depth=3).logits)
    assert ("low-rank updates" in report.text) == (modulation == "free")
    assert plain.bases > 0


def test_seed_starts_the_controller_and_nothing_else(tiny_original: Path, tmp_path: Path) -> None:
    states = []
    for seed in (0, 0, 1):
        convert(str(tiny_original), tmp_path / "out", recurrent=3, seed=seed, **SMALL)
        states.append(load_checkpoint(tmp_path / "out")[0].state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    inner = ("style.weight", "step_embedding.weight", "mix_1.weight", "mix_2.weight")
    assert changed == {f"recurrent.controller.{name}" for name in inner}


def test_block_that_replaces_nothing_else_has_no_bases(tiny_original: Path, tmp_path: Path) -> None:
    report = convert(str(tiny_original), tmp_path / "out", recurrent="2-3", **SMALL)
    model, _ = load_checkpoint(tmp_path / "out")
    assert not any(name.endswith("lora_b") and b.any() for name, b in model.named_buffers())
    assert "all zero for 2..3, which stand in for no layer" in report.text


def test_matched_norms_are_the_layers_own_rms(tiny_original: Path, tmp_path: Path) -> None:
    convert(str(tiny_original), tmp_path / "out", recurrent=3, norm_init="matched", **SMALL)
    weight = load_checkpoint(tmp_path / "out")[0].recurrent.norm.weight.detach()
    assert torch.equal(weight, weight[:, :1].expand_as(weight))
    assert torch.equal(weight[3:], weight[2:3].expand(3, -1))
    assert float((weight[0] - 1).abs().max()) > 1e-3


@torch.no_grad()
def test_matched_norms_are_of_what_the_block_gives(block_checkpoint: Path) -> None:
    model, _ = load_checkpoint(block_checkpoint)
    windows = torch.arange(3, 51).reshape(2, 24)
    match_step_norms(model, run_prelude(model, windows), 3)
    given: list[torch.Tensor] = []
    model.recurrent.norm.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    model(windows, depth=3, use_cache=False)
    rms = torch.stack([one.pow(2).mean().sqrt() for one in given])
    torch.testing.assert_close(model.recurrent.norm.weight[:3, 0], rms)


def test_conversion_starts_unmodulated(tiny_original: Path, tmp_path: Path) -> None:
    """A fresh conversion runs the looped layer as it was, with 88 % of h kept at every step."""
    convert(str(tiny_original), tmp_path / "out", recurrent=3, norm_init="ones", **SMALL)
    model, _ = load_checkpoint(tmp_path / "out")
    original = AutoModelForCausalLM.from_pretrained(tiny_original, dtype=torch.float32).eval()
    ids = torch.arange(10, 26)[None]
    core = original.model
    with torch.no_grad():
        hidden = core.embed_tokens(ids)
        places = torch.arange(ids.shape[1])[None]
        rotary = core.rotary_emb(hidden, position_ids=places)
        mask = torch.full((ids.shape[1],) * 2, torch.finfo(torch.float32).min).triu(1)[None, None]

        def run(index: int, hidden: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = core.layers[index](
                hidden, attention_mask=mask, position_embeddings=rotary
            )
            return out

        for index in (0, 1):
            hidden = run(index, hidden)
        for _ in range(3):
            new = run(3, hidden)
            new = new / (new.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
            hidden = hidden + 0.119202922 * (new - hidden)
        for index in (4, 5):
            hidden = run(index, hidden)
        expected = original.lm_head(core.norm(hidden))
        found = model(ids, depth=3, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_auto_takes_the_best_candidate_at_depth(tiny_original: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    report = convert(str(tiny_original), tmp_path / "out", report=lines.append, **SMALL)
    assert sorted(c.layer for c in report.candidates) == [2, 3]
    best = min(report.candidates, key=lambda c: c.loss_at_depth)
    assert report.recurrent == best.layer
    assert load_checkpoint(tmp_path / "out")[0].config.recurrent == best.layer
    assert [line.split()[0] for line in lines if line.startswith(" ")] == ["layer", "2", "3"]


@pytest.mark.slow
def test_auto_takes_the_best_block(tiny_original: Path, tmp_path: Path) -> None:
    """What is written is what the conversion with the block's name writes, bases of each layer too.

    How many bases of its own a looped layer has depends on which block it is.
    """
    options = {**SMALL, "prelude": 1, "coda": 0, "bases": "per_step", "bridge": "entry"}
    lines: list[str] = []
    say = lines.append
    report = convert(
        str(tiny_original), tmp_path / "auto", recurrent="auto:2", report=say, **options
    )
    assert sorted(one.layer for one in report.candidates) == [1, 2, 3, 4]
    assert [line.split()[0] for line in lines if line.startswith(" ")] == [
        "layers", "1-2", "2-3", "3-4", "4-5"
    ]  # fmt: skip
    first = min(report.candidates, key=lambda one: one.loss_at_depth).layer
    convert(str(tiny_original), tmp_path / "named", recurrent=f"{first}-{first + 1}", **options)
    chosen, named = (load_checkpoint(tmp_path / name)[0] for name in ("auto", "named"))
    assert (chosen.config.recurrent, chosen.config.recurrent_layers) == (first, 2)
    for name, value in chosen.state_dict().items():
        assert torch.equal(value, named.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("config", KINDS_OF_LLAMA, ids=["biases", "rope of Llama 3"])
def test_a_kind_of_llama_converts_and_exports(config: Any, tmp_path: Path) -> None:
    import numpy as np
    import onnx_ir as ir
    import onnxruntime as ort

    from export.cases import record_cases
    from export.graph.stitch import build_graph

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    options = {**SMALL, "norm_init": "ones"}
    convert(str(tmp_path / "source"), tmp_path / "out", recurrent=3, **options)
    model, _ = load_checkpoint(tmp_path / "out")
    with torch.no_grad():
        model.recurrent.controller.heads.weight.normal_(std=0.1)
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.1)
    ir.save(build_graph(model, 3)[0], tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    case = record_cases(model, None, [3])[0]
    assert case.kind == "prefill"
    (logits,) = session.run(["logits"], dict(case.inputs))
    expected = case.outputs["logits"]
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert error < 1e-5, error


def test_dropped_middle_is_the_plain_shortened_model(tiny_original: Path) -> None:
    source = load_source(str(tiny_original))
    short = drop_middle(source.model, 2, 1, [3, 4])
    whole = source.model.model.layers
    assert len(whole) == 6
    assert list(short.model.layers) == [whole[index] for index in (0, 1, 3, 4, 5)]
    assert len(drop_middle(source.model, 2, 2, []).model.layers) == 4
    assert torch.isfinite(short(torch.tensor([[5, 6]]), use_cache=False).logits).all()
    short.config.use_cache = False  # as the study's downstream tasks call it
    assert torch.isfinite(short(torch.tensor([[5, 6]])).logits).all()


def test_config_of_the_source_is_whole(tiny_original: Path, tmp_path: Path) -> None:
    convert(str(tiny_original), tmp_path / "out", recurrent=3, **SMALL)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert isinstance(config, OuroborosConfig)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["base_config"]["num_hidden_layers"] == 6
    assert len(written["source"]["sha256"]) == 64


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (70, 70)])
def test_gram_vectors_are_the_truncated_svd(shape: tuple[int, int]) -> None:
    """What large matrices go by; the expected values are LAPACK's SVD in float64."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    found = top_vectors(matrix, 8)
    assert found is not None
    a, b = found
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    signs = (a.double() * vh[:8]).sum(-1).sign()
    torch.testing.assert_close(a.double(), vh[:8] * signs[:, None], rtol=0, atol=1e-6)
    torch.testing.assert_close(b.double(), u[:, :8] * s[:8] * signs, rtol=0, atol=1e-7)


def test_gram_vectors_leave_what_they_can_not_tell_to_the_svd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thin = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    matrix = thin @ thin.T[:, :30]
    assert top_vectors(matrix, 3) is not None
    assert top_vectors(matrix, 4) is None
    assert top_vectors(torch.zeros(40, 30), 1) is None
    monkeypatch.setattr("ouroboros.conversion.bases.GRAM_SIZE", 16)
    a, b = truncated_svd(matrix, 4)
    torch.testing.assert_close(b @ a, matrix, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-5)
