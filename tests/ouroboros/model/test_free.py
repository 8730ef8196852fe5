"""Free updates: a low-rank update a step that trains itself, a rival of equal size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ouroboros import OuroborosConfig, convert, load_checkpoint, restore_delta, save_delta
from ouroboros.checkpoint import save_checkpoint
from ouroboros.model.configuration import PROJECTIONS
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.storage.weights import build_empty
from ouroboros.training.run import train
from tests.support.tiny import SMALL, randomise
from tests.support.training import options, tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 9, 2, 7, 11, 3], [8, 2, 2, 30, 4, 6]])
SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}  # fmt: skip


def count(prefix: str | tuple[str, ...], **changes: Any) -> int:
    config = OuroborosConfig(base_config=SMOLLM2, recurrent=21, max_depth=16, **changes)
    model = build_empty(config)
    named = dict(model.named_parameters())
    return sum(
        named[name].numel()
        for name in model.trainable_names()
        if name.startswith(prefix) or name.endswith(prefix)
    )


def free_model(**changes: Any) -> OuroborosForCausalLM:
    """The tiny model with its bases at random, and with B of zero where `fresh`."""
    fresh = changes.pop("fresh", False)
    model = tiny_model(modulation="free", **changes)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if fresh and name.endswith(".lora_b"):
                value.zero_()
    return model


def test_it_is_as_large_as_the_documented_controller() -> None:
    """docs/design.md: in plus out of q, k, v, o, gate, up and down, times rank and steps."""
    widths = 2 * 1152 + 2 * 768 + 3 * 2112
    free = count((".lora_a", ".lora_b"), modulation="free", rank=2)
    assert free == 16 * 2 * widths == 325_632
    assert count("recurrent.controller.") == 309_888
    assert count("recurrent.controller.", modulation="free", rank=2) == 0


def test_every_step_has_an_update_of_its_own() -> None:
    model = free_model(alpha=3.0)
    up = model.recurrent.projections()[0]["up_proj"]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    up.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        model(IDS, depth=5)
    assert up.lora_a.shape == (6, 4, 32)
    for step, (given, found) in enumerate(seen):
        weight = up.weight + 3.0 / 4 * up.lora_b[step] @ up.lora_a[step]
        torch.testing.assert_close(found, given @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recurrent", ["frozen", "lora", "full"])
def test_what_trains_of_a_run(corpus: Path, tmp_path: Path, recurrent: str) -> None:
    """At depth 2 the updates of two steps, at their own learning rate."""
    checkpoint, out = tmp_path / "free", tmp_path / "out"
    save_checkpoint(free_model(fresh=True), tiny_tokenizer(), checkpoint)
    more = {"adapter_rank": 2} if recurrent == "lora" else {}
    # Of the original's layers nothing would move; the updates have the other rate.
    rate = {} if recurrent == "frozen" else {"layer_learning_rate": 1e-30}
    run = options(corpus, depth="2", train_recurrent=recurrent, **more, **rate)
    train(checkpoint, out, run)
    before, after = load_checkpoint(checkpoint)[0], load_checkpoint(out)[0]
    for name in PROJECTIONS:
        old, new = (one.recurrent.projections()[0][name] for one in (before, after))
        changed = [not torch.equal(a, b) for a, b in zip(old.lora_b, new.lora_b, strict=True)]
        assert changed == [True, True, False, False, False, False]
        assert torch.equal(old.weight, new.weight)


def test_a_delta_brings_it_back(tiny_original: Path, tmp_path: Path) -> None:
    chosen = {**SMALL, "recurrent": 3, "modulation": "free"}
    convert(str(tiny_original), tmp_path / "out", **chosen)
    model, tokenizer = load_checkpoint(tmp_path / "out")
    first = model.recurrent.projections()[0]["up_proj"]
    assert not bool(first.lora_b.any())
    assert 0 < float(first.lora_a.detach().abs().max()) <= 64**-0.5
    randomise(model)
    save_checkpoint(model, tokenizer, tmp_path / "out", keep=("LICENSE", "ATTRIBUTION"))
    save_delta(tmp_path / "out", tmp_path / "delta", str(tiny_original))
    assert restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original)).identical
