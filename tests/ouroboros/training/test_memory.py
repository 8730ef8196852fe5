"""A run's memory, planned from the config: held against a model that is really there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ouroboros import load_checkpoint
from ouroboros.errors import ConfigError, DataError
from ouroboros.model.rounding import Rounding
from ouroboros.training.adapters import mark_trained
from ouroboros.training.half import halve_frozen, parts_run
from ouroboros.training.memory import count_activations, plan_memory
from ouroboros.training.qat import round_model
from ouroboros.training.recipe import TrainOptions
from tests.support.processes import call_ouro

OPTIONS = TrainOptions(
    data=(Path("text"),), depth="1-3", batch_size=2, seq_len=16, train_coda="full"
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_plan_is_what_a_real_model_holds(tiny_checkpoint: Path, precision: str) -> None:
    options = replace(OPTIONS, precision=precision)
    model, _ = load_checkpoint(tiny_checkpoint)
    model.train().mark_trainable("full")
    plan = plan_memory(model.config, options)
    whole_floats = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    # As the trainer runs it: frozen matrices cast once, beside the floats that it puts back.
    halved = halve_frozen(parts_run(model, stated=False) if precision == "bf16" else ())
    assert bool(halved.floats) == (precision == "bf16")
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plan.gradients == trained
    assert plan.optimizer == 2 * trained
    held = {
        t.untyped_storage().data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]
    }
    assert plan.weights == sum(held.values()) + halved.float_bytes
    assert plan_memory(model.config, options, "cuda").weights == sum(held.values())
    assert sum(held.values()) <= whole_floats
    assert plan.activations == count_activations(model, options) > 0
    parts = (plan.weights, plan.teacher, plan.gradients, plan.optimizer, plan.activations)
    assert plan.total == sum(parts) + plan.logits


@pytest.mark.slow
def test_deeper_and_longer_runs_keep_more(tiny_checkpoint: Path) -> None:
    config = load_checkpoint(tiny_checkpoint)[0].config
    least = plan_memory(config, OPTIONS)
    assert plan_memory(config, replace(OPTIONS, depth="4")).activations > least.activations
    assert plan_memory(config, replace(OPTIONS, seq_len=32)).activations > least.activations
    frozen = plan_memory(config, replace(OPTIONS, train_coda="frozen"))
    assert frozen.optimizer < least.optimizer
    assert least.teacher == 0
    taught = plan_memory(config, replace(OPTIONS, teacher="original"))
    body = 4 * sum(p.numel() for p in original_body(config).parameters())
    assert taught.teacher == body


def test_adapters_are_planned_in_place_of_whole_weights(tiny_checkpoint: Path) -> None:
    config = load_checkpoint(tiny_checkpoint)[0].config
    whole = plan_memory(config, OPTIONS)
    rank = replace(OPTIONS, train_coda="lora", adapter_rank=2)
    adapted = plan_memory(config, rank)
    model, _ = load_checkpoint(tiny_checkpoint)
    mark_trained(model.train(), rank)
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapted.gradients == trained < whole.gradients
    assert adapted.optimizer == 2 * trained
    assert adapted.weights == whole.weights + 4 * sum(
        p.numel() for name, p in model.named_parameters() if ".lora_" in name
    )
    assert adapted.activations == count_activations(model, rank)


def test_steps_without_a_graph_keep_nothing(tiny_checkpoint: Path) -> None:
    config = load_checkpoint(tiny_checkpoint)[0].config
    plans = [
        plan_memory(config, replace(OPTIONS, depth=depth, backprop_steps=2)).activations
        for depth in ("2", "3", "4")
    ]
    assert plans[0] < plan_memory(config, replace(OPTIONS, depth="4")).activations
    # But for the state that each step enters with.
    assert max(plans) - min(plans) <= 2 * 4 * 2 * 16 * config.hidden_size


def test_recomputed_steps_keep_what_they_enter_with(tiny_checkpoint: Path) -> None:
    config = load_checkpoint(tiny_checkpoint)[0].config
    shallow, deep = (
        plan_memory(config, replace(OPTIONS, depth=depth, recompute=True)).activations
        for depth in ("1", "4")
    )
    assert deep - shallow == 3 * 4 * 2 * 16 * config.hidden_size
    assert deep < plan_memory(config, replace(OPTIONS, depth="4")).activations / 3


def test_a_folded_teacher_is_counted_as_it_is(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    tensors = [*model.parameters(), *model.buffers()]
    run = replace(OPTIONS, teacher=str(tiny_checkpoint))
    assert plan_memory(model.config, run).teacher == 4 * sum(t.numel() for t in tensors)


def test_teacher_is_gone_where_its_states_are_kept(tiny_checkpoint: Path) -> None:
    config = load_checkpoint(tiny_checkpoint)[0].config
    kept = plan_memory(config, replace(OPTIONS, teacher="original", state_cache="kept"))
    assert kept.teacher == 0


def test_rounding_keeps_the_floats_of_what_is_frozen(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    plain = plan_memory(model.config, OPTIONS)
    options = replace(OPTIONS, qat="int4")
    plan = plan_memory(model.config, options)
    model.train().mark_trainable("full")
    rounded = round_model(model, Rounding(4, symmetric=False))
    assert plan.weights == plain.weights + sum(floats.nbytes for _, floats in rounded.frozen)
    assert plan.activations == count_activations(model, options) > plain.activations
    assert plan.optimizer == plain.optimizer


def test_a_depth_beyond_the_model_is_refused(tiny_checkpoint: Path) -> None:
    config = load_checkpoint(tiny_checkpoint)[0].config
    with pytest.raises(ConfigError, match="depth=9 is outside"):
        plan_memory(config, replace(OPTIONS, depth="9"))


def test_a_window_beyond_the_positions_is_refused(tiny_checkpoint: Path) -> None:
    config = load_checkpoint(tiny_checkpoint)[0].config
    with pytest.raises(DataError, match="seq_len=1000000000 is more than the model's 512 posi"):
        plan_memory(config, replace(OPTIONS, seq_len=10**9))


def test_the_command_prints_the_plan_and_writes_nothing(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--data", tmp_path / "none.txt", "--depth", "2", "--seq-len", 16, "--plan"]
    done = call_ouro("train", tiny_checkpoint, out, *options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["GB"] * 7
    assert lines[-1].endswith("in all, in every process (cpu)")
    assert not out.exists()


def original_body(config: Any) -> torch.nn.Module:
    from transformers import AutoModel

    with torch.device("meta"):
        body: torch.nn.Module = AutoModel.from_config(config.base())
    return body
