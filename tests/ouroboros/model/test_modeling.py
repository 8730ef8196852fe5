"""The model: parameter counts, exact caches, padding, row depths, Auto classes, PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from ouroboros import OuroborosConfig, OuroborosForCausalLM, load_checkpoint
from ouroboros.errors import ConfigError
from ouroboros.model.modulation import StaticModulation
from ouroboros.model.step import gate_means

PROMPT = 9


@pytest.fixture(scope="module", params=["tiny_checkpoint", "block_checkpoint"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """One that loops a layer, and one that loops a block of two."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> OuroborosForCausalLM:
    return load_checkpoint(checkpoint)[0]


def with_pooling(checkpoint: Path, pooling: str) -> OuroborosForCausalLM:
    model = load_checkpoint(checkpoint)[0]
    config = OuroborosConfig.from_dict({**model.config.to_dict(), "pooling": pooling})
    twin = OuroborosForCausalLM(config).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def tokens(model: OuroborosForCausalLM, rows: int, length: int = PROMPT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, model.config.vocab_size, (rows, length), generator=generator)


QWEN = Qwen2Config(
    hidden_size=2048,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    intermediate_size=11008,
    vocab_size=151936,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize("bridge", ["none", "entry", "exit"])
def test_trainable_parameters_of_qwen_match_the_paper(bridge: str) -> None:
    """Controller, gate and step norms of arXiv 2604.02051: 9.2 M on Qwen2.5-3B; the bridge's own.

    The paper's model has none.
    """
    base = QWEN
    config = OuroborosConfig(base_config=base, rank=32, max_depth=64, bridge=bridge)
    with torch.device("meta"):
        model = OuroborosForCausalLM(config)
    step = model.recurrent
    parts = [
        sum(p.numel() for p in m.parameters()) for m in (step.controller, step.gate, step.norm)
    ]
    assert parts == [692_864, 8_390_656, 131_072]
    own = 0 if bridge == "none" else 2048 * 2048 + 2048
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 9_214_592 + own
    assert config.recurrent == 18


def test_block_has_heads_a_layer_and_one_norm_and_gate() -> None:
    """Each further layer costs its seven heads of rank 32 on a style of 128, no more."""
    config = OuroborosConfig(base_config=QWEN, rank=32, max_depth=64, recurrent_layers=4)
    with torch.device("meta"):
        model = OuroborosForCausalLM(config)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == 9_214_592 + 3 * 7 * 32 * 128
    assert (config.recurrent, config.recurrent_layers) == (16, 4)  # in the middle of 36
    assert config.num_hidden_layers == 8 + 4 + 8


@pytest.mark.parametrize("pooling", ["causal", "token", "mean"])
def test_cached_and_uncached_logits_agree(checkpoint: Path, pooling: str) -> None:
    model = with_pooling(checkpoint, pooling)
    ids = tokens(model, 2)
    with torch.no_grad():
        first = model(ids[:, :5], depth=4, use_cache=True)
        rest = [first.logits]
        for place in range(5, PROMPT):
            step = model(ids[:, place : place + 1], depth=4, past_key_values=first.past_key_values)
            rest.append(step.logits)
        cached = torch.cat(rest, 1)
        if pooling == "mean":  # the cache freezes the mean on the prompt; a whole pass does not
            whole = model(ids[:, :5], depth=4, use_cache=False).logits
            torch.testing.assert_close(cached[:, :5], whole, rtol=1e-5, atol=1e-5)
            again = model(ids, depth=4, use_cache=False).logits
            assert (again - cached).abs().max() > 1e-3
        else:
            whole = model(ids, depth=4, use_cache=False).logits
            torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "leaks"), [("causal", False), ("token", False), ("mean", True)]
)
@torch.no_grad()
def test_later_token_changes_no_earlier_logit(
    tiny_checkpoint: Path, pooling: str, leaks: bool
) -> None:
    model = with_pooling(tiny_checkpoint, pooling)
    ids = tokens(model, 1)
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % model.config.vocab_size
    before, after = (model(i, depth=3, use_cache=False).logits[:, :-1] for i in (ids, other))
    assert bool((before != after).any()) == leaks


@torch.no_grad()
def test_padded_batch_equals_its_rows_alone(model: OuroborosForCausalLM) -> None:
    ids = tokens(model, 2)
    for columns in (slice(0, 3), slice(PROMPT - 3, PROMPT)):
        mask = torch.ones_like(ids)
        mask[0, columns] = 0
        logits = model(ids, attention_mask=mask, depth=4, use_cache=False).logits
        alone = model(ids[:1, mask[0] == 1], depth=4, use_cache=False).logits
        torch.testing.assert_close(logits[:1, mask[0] == 1], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_row_depths_equal_runs_at_that_depth(model: OuroborosForCausalLM) -> None:
    ids = tokens(model, 3)
    mixed = model(ids, depth=[4, 1, 3], use_cache=False).logits
    for row, depth in enumerate((4, 1, 3)):
        alone = model(ids[row : row + 1], depth=depth, use_cache=False).logits
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_packed_documents_equal_documents_alone(model: OuroborosForCausalLM) -> None:
    ids = tokens(model, 1, 12)
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = model(ids, position_ids=positions, depth=4, use_cache=False).logits
    for cut in (slice(0, 5), slice(5, 12)):
        alone = model(ids[:, cut], depth=4, use_cache=False).logits
        torch.testing.assert_close(packed[:, cut], alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="use_cache=False"):
        model(ids, position_ids=positions, depth=4, use_cache=True)


def generate(model: OuroborosForCausalLM, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **options}
    if "attention_mask" not in options:
        options["attention_mask"] = torch.ones_like(ids)
    out: torch.Tensor = model.generate(ids, eos_token_id=None, **options)
    return out[:, ids.shape[1] :]


@pytest.mark.parametrize("padding", [slice(0, 3), slice(PROMPT - 3, PROMPT)])
@pytest.mark.filterwarnings("ignore")
def test_generate_padded_and_mixed_depth_rows_equal_rows_alone(
    model: OuroborosForCausalLM, padding: slice
) -> None:
    ids = tokens(model, 2)
    mask = torch.ones_like(ids)
    mask[0, padding] = 0
    both = generate(model, ids, attention_mask=mask, depth=torch.tensor([4, 2]))
    assert torch.equal(both[:1], generate(model, ids[:1, mask[0] == 1], depth=4))
    assert torch.equal(both[1:], generate(model, ids[1:], depth=2))


@pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")
def test_generate_with_and_without_cache_agree(model: OuroborosForCausalLM) -> None:
    ids = tokens(model, 2)
    for options in ({}, {"num_beams": 3}):
        cached, plain = (
            generate(model, ids, depth=3, use_cache=c, **options) for c in (True, False)
        )
        assert torch.equal(cached, plain)


def test_auto_classes_load_and_freeze_the_base(tiny_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    assert isinstance(model, OuroborosForCausalLM)
    names = model.trainable_names()
    assert names
    assert all(n.startswith(("recurrent.", "bridge.")) and ".layers." not in n for n in names)
    model.mark_trainable("norms")
    assert "norm.weight" in model.trainable_names()
    assert "coda.0.mlp.up_proj.weight" not in model.trainable_names()
    model.mark_trainable("full")
    assert "coda.0.mlp.up_proj.weight" in model.trainable_names()


def test_frozen_prelude_is_not_back_propagated_through(tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)[0].train()
    seen: list[bool] = []
    model.prelude[-1].register_forward_hook(lambda m, i, o: seen.append(o.requires_grad))
    ids = tokens(model, 1)
    model(ids, labels=ids, depth=2).loss.backward()
    assert seen == [False]
    assert model.recurrent.controller.heads.weight.grad.abs().max() > 0
    assert model.embed_tokens.weight.grad is None


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft's own
def test_peft_wraps_and_trains(tiny_checkpoint: Path) -> None:
    import peft

    model = load_checkpoint(tiny_checkpoint)[0]
    config = peft.LoraConfig(r=2, target_modules=r"coda\..*\.(q_proj|v_proj)")
    wrapped = peft.get_peft_model(model, config)
    ids = tokens(model, 1)
    wrapped(input_ids=ids, labels=ids, depth=2).loss.backward()
    grads = [p.grad for n, p in wrapped.named_parameters() if "lora_B" in n]
    assert grads
    assert all(g is not None and g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize(
    ("depth", "words"),
    [(0, r"depth=0 .* 1\.\.8"), (-1, "depth=-1"), (9, "depth=9"), ([1, 2, 3], "3 entries for 2")],
)
def test_depth_outside_the_range_is_refused(
    model: OuroborosForCausalLM, depth: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        model(tokens(model, 2), depth=depth)


def test_static_and_gateless_ablations_run(tiny_checkpoint: Path) -> None:
    fields = load_checkpoint(tiny_checkpoint)[0].config.to_dict()
    config = OuroborosConfig.from_dict({**fields, "modulation": "static", "gate": False})
    model = OuroborosForCausalLM(config).eval()
    assert isinstance(model.recurrent.controller, StaticModulation)
    ids = tokens(model, 1)
    assert torch.isfinite(model(ids, depth=3, use_cache=False).logits).all()
    assert gate_means(model, ids, 3) == []


def test_trained_parts_start_as_the_paper_says(model: OuroborosForCausalLM) -> None:
    """arXiv 2604.02051, section 3: heads and W_g zero, b_g = -2, so g = sigmoid(-2) = 0.1192."""
    fresh = OuroborosForCausalLM(model.config).eval()
    assert not fresh.recurrent.controller.heads.weight.any()
    assert fresh.recurrent.gate is not None
    assert not fresh.recurrent.gate.proj.weight.any()
    assert torch.all(fresh.recurrent.norm.weight == 1)
    assert bool(fresh.recurrent.controller.style.weight.any())
    means = gate_means(fresh, tokens(fresh, 1), 4)
    assert means == pytest.approx([0.119203] * 4, abs=1e-6)


def test_static_modulation_starts_at_zero(model: OuroborosForCausalLM) -> None:
    config = OuroborosConfig.from_dict({**model.config.to_dict(), "modulation": "static"})
    assert not OuroborosForCausalLM(config).recurrent.controller.vectors.any()
