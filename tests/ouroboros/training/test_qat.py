"""Training for integer weights: the model trained is the model stored."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from export import export_bundle
from export.quantize.model import Quantization, quantize_model
from ouroboros import load_checkpoint, save_checkpoint
from ouroboros.errors import TrainingError
from ouroboros.evaluate import score_windows
from ouroboros.model.configuration import PROJECTIONS
from ouroboros.model.rounding import Rounding
from ouroboros.model.trainable import EMBEDDING_CHOICES
from ouroboros.text.windows import load_eval_windows
from ouroboros.training.adapters import adapted_layers, mark_trained
from ouroboros.training.loss import head_loss
from ouroboros.training.qat import Rounded, round_model, rounded_once
from ouroboros.training.run import train
from ouroboros.training.teacher import load_teacher
from runtime.bundle.reader import open_bundle
from runtime.parity.check import check_bundle
from tests.support.training import options

WHOLE = {"train_coda": "full", "train_recurrent": "full"}
BY_ADAPTERS = {"train_coda": "lora", "train_recurrent": "lora", "adapter_rank": 4}
TRAINED: tuple[dict[str, Any], ...] = (
    WHOLE, {**WHOLE, "train_embedding": "full"}, BY_ADAPTERS
)  # fmt: skip
IDS = torch.arange(10, 34).reshape(2, 12)


def test_rounded_model_computes_what_the_export_stores(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    stored = copy.deepcopy(model)
    quantize_model(stored, Quantization(4, symmetric=False, sensitive_bits=4))
    # The Controller and the bases are floats in training; stored they are float16.
    model.recurrent.controller.load_state_dict(stored.recurrent.controller.state_dict())
    pairs = zip(model.recurrent.projections(), stored.recurrent.projections(), strict=True)
    for own, rounded_layer in pairs:
        for name, projection in rounded_layer.items():
            own[name].lora_a.copy_(projection.lora_a)
            own[name].lora_b.copy_(projection.lora_b)
    model.mark_trainable("full", "full")
    floats = model(IDS, depth=3).logits
    rounded = round_model(model, Rounding(4, symmetric=False))
    assert rounded.trained
    assert rounded.frozen
    with torch.no_grad(), rounded_once(model):
        found, expected = model(IDS, depth=3).logits, stored(IDS, depth=3).logits
    assert torch.equal(found, expected)
    assert not torch.allclose(found, floats, atol=1e-2)


@pytest.mark.parametrize("embedding", EMBEDDING_CHOICES)
def test_floats_come_back(tiny_checkpoint: Path, embedding: str) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    model.mark_trainable("full", embedding=embedding)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounding = Rounding(4, 32, False)
    rounded = round_model(model, rounding)
    assert torch.equal(rounded.head, before["lm_head.weight"])
    assert rounded.restore() == {"bits": 4, "block": 32, "symmetric": False}
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.lm_head.weight is model.embed_tokens.weight


def test_gradients_pass_through_the_rounding(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    model.mark_trainable("full", embedding="full")
    twin = copy.deepcopy(model)
    rounding = Rounding(4, 32, False)
    for linear in (m for m in twin.modules() if isinstance(m, torch.nn.Linear)):
        if linear not in twin.recurrent.controller.modules():
            with torch.no_grad():
                linear.weight.copy_(rounding.nearest(linear.weight))
    round_model(model, rounding)
    for one in (model, twin):
        with rounded_once(one):
            one(IDS, labels=IDS, depth=2, use_cache=False).loss.backward()
    weight = model.coda[0].mlp.down_proj.parametrizations["weight"].original
    assert torch.equal(weight.grad, twin.coda[0].mlp.down_proj.weight.grad)
    gate = model.recurrent.gate.proj.parametrizations["weight"].original
    assert torch.equal(gate.grad, twin.recurrent.gate.proj.weight.grad)
    # Of a tied table both uses teach the one parameter.
    assert torch.equal(named_gradient(model, "embed_tokens"), named_gradient(twin, "embed_tokens"))


def test_adapters_are_rounded_with_the_weights_they_are_beside(tiny_checkpoint: Path) -> None:
    """What is computed is what their sums are rounded to, and both factors learn of it."""
    run = options(Path("text"), qat="int4", **BY_ADAPTERS)
    model, _ = load_checkpoint(tiny_checkpoint)
    twin, _ = load_checkpoint(tiny_checkpoint)
    for one in (model, twin):
        adapters = mark_trained(one, run)
        assert adapters
        torch.manual_seed(1)
        for name, factor in one.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(factor, std=0.05)
        if one is twin:
            assert adapters.merge()
            one.mark_trainable("full", "full")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    rounded, rounded_twin = (round_model(one, Rounding(4, 32, False)) for one in (model, twin))
    assert len(rounded.trained) == len(rounded_twin.trained)
    for one in (model, twin):
        with rounded_once(one):
            one(IDS, labels=IDS, depth=2, use_cache=False).loss.backward()
    products = {one.get_base_layer(): one.get_delta_weight("default")
                for _, one in adapted_layers(model)}  # fmt: skip
    assert len(products) == 3 * len(PROJECTIONS)
    for layer, other in zip(rounded.trained, rounded_twin.trained, strict=True):
        whole = layer.weight + products.get(layer, 0.0)
        torch.testing.assert_close(whole, other.weight, rtol=0, atol=1e-6)
    down, plain = (one.coda[0].mlp.down_proj for one in (model, twin))
    whole = plain.parametrizations["weight"].original.grad
    a, b = (side["default"].weight for side in (down.lora_A, down.lora_B))
    scale = run.adapter_alpha / run.adapter_rank
    torch.testing.assert_close(b.grad, scale * whole @ a.T, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(a.grad, scale * b.T @ whole, rtol=1e-3, atol=1e-4)
    rounded.restore()
    after = model.state_dict()
    assert after.keys() == start.keys()
    assert all(torch.equal(after[name], value) for name, value in start.items())


def named_gradient(model: Any, name: str) -> torch.Tensor:
    (found,) = (p.grad for key, p in model.named_parameters() if key.startswith(f"{name}."))
    return found


def test_a_weight_is_rounded_once_for_all_steps(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    model.mark_trainable("frozen", "full")
    rounded = round_model(model, Rounding(4))
    calls: list[int] = []
    forward = Rounded.forward

    def count(self: Rounded, weight: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(self, weight)

    monkeypatch.setattr(Rounded, "forward", count)
    with rounded_once(model):
        model(IDS, depth=4, use_cache=False)
    assert len(calls) == len(rounded.trained)


@pytest.mark.parametrize("more", [{"depth_term": 0.5}, {"backprop_steps": 1}])
def test_weights_train_where_they_are_first_used_without_a_graph(
    tiny_checkpoint: Path, corpus: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    run = options(
        corpus, qat="int8", train_coda="full", train_recurrent="full", depth="3-4", train_steps=3,
        **more,
    )  # fmt: skip
    train(tiny_checkpoint, tmp_path / "out", run)
    before, after = (load_checkpoint(one)[0] for one in (tiny_checkpoint, tmp_path / "out"))
    for name in ("coda.0.mlp.up_proj.weight", "recurrent.layers.0.mlp.up_proj.weight"):
        assert not torch.equal(before.get_parameter(name), after.get_parameter(name)), name


def test_a_block_that_does_not_fit_names_those_that_do(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    with pytest.raises(TrainingError, match=r"qat_block=128 does not cut \d+ inputs.*one of 32"):
        round_model(model, Rounding(4, 128))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and then it rests. " * 30)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("trained", TRAINED)
def test_a_run_trains_what_is_exported(
    tiny_checkpoint: Path,
    tiny_original: Path,
    corpus: Path,
    tmp_path: Path,
    trained: dict[str, Any],
) -> None:
    run = options(
        corpus, qat="int4", eval=(corpus,), eval_depths=(2,), eval_windows=2, save_every=2,
        learning_rate=1e-2, teacher=str(tiny_original), **trained,
    )  # fmt: skip
    report = train(tiny_checkpoint, tmp_path / "out", run)
    model, tokenizer = load_checkpoint(tmp_path / "out")
    assert model.config.qat == {"bits": 4, "block": 32, "symmetric": False}
    start, _ = load_checkpoint(tiny_checkpoint)
    same = torch.equal(model.embed_tokens.weight, start.embed_tokens.weight)
    assert same == ("train_embedding" not in trained)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert not torch.equal(model.coda[0].mlp.up_proj.weight, start.coda[0].mlp.up_proj.weight)
    # Scored as it was trained: on the weights that the integers stand for.
    (windows,) = load_eval_windows((corpus,), tokenizer, run.seq_len, 2).values()
    round_model(model, Rounding(4, symmetric=False))
    assert score_windows(model, windows, 2) == pytest.approx(report.heldout[2], rel=1e-6)
    export_bundle(tmp_path / "out", tmp_path / "bundle", max_depth=2, precision="int4")
    spec = open_bundle(tmp_path / "bundle").manifest.quantization
    assert (spec.bits, spec.sensitive_bits, spec.block, spec.symmetric) == (4, 4, 32, False)
    assert check_bundle(tmp_path / "bundle", threads=1).verdict == "PASS"
    # Trained on without it, the model is not what it says any more.
    train(tmp_path / "out", tmp_path / "later", options(corpus, train_steps=1))
    assert load_checkpoint(tmp_path / "later")[0].config.qat == {}


@pytest.mark.parametrize(
    "trained", [WHOLE, *(pytest.param(one, marks=pytest.mark.slow) for one in TRAINED[1:])]
)
def test_resume_is_exact(
    tiny_checkpoint: Path,
    tiny_original: Path,
    corpus: Path,
    tmp_path: Path,
    trained: dict[str, Any],
) -> None:
    run = options(corpus, qat="int4", teacher=str(tiny_original), save_every=2, **trained)
    train(tiny_checkpoint, tmp_path / "whole", run)
    shutil.copytree(tmp_path / "whole" / "state" / "step-2", tmp_path / "part" / "state" / "step-2")
    train(tiny_checkpoint, tmp_path / "part", run, resume=True)
    whole, part = (load_checkpoint(tmp_path / n)[0].state_dict() for n in ("whole", "part"))
    assert all(torch.equal(part[name], value) for name, value in whole.items())


def test_the_teacher_keeps_its_own_head(tiny_checkpoint: Path, tiny_original: Path) -> None:
    """Distilled from itself with nothing rounded, the KL is nothing; a rounded head alone costs."""
    torch.manual_seed(0)
    hidden, head = torch.randn(6, 32), torch.randn(50, 32)
    labels = torch.arange(6)
    rounded = Rounding(4).nearest(head)
    same = head_loss(hidden, head, labels, hidden, 1.0)
    assert same.abs() < 1e-5
    apart = head_loss(hidden, rounded, labels, hidden, 1.0, teacher_head=head)
    log_p = torch.log_softmax(hidden @ rounded.T, -1)
    log_q = torch.log_softmax(hidden @ head.T, -1)
    assert apart == pytest.approx(float((log_q.exp() * (log_q - log_p)).sum()), rel=1e-5)


def test_a_teacher_that_was_trained_for_integers_is_what_they_stand_for(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    head = model.lm_head.weight.detach().clone()
    model.config.qat = {"bits": 4, "block": 32, "symmetric": True}
    save_checkpoint(model, tokenizer, tmp_path / "rounded", {"LICENSE": b"free"})
    teacher = load_teacher(str(tmp_path / "rounded"), head)
    model.requires_grad_(False)
    round_model(model, Rounding(4, 32, True))
    assert teacher.head is not None
    with torch.no_grad():
        found = teacher.final_state(IDS, None) @ teacher.head.T
        torch.testing.assert_close(found, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qat": "int2"}, "qat='int2' is unknown; choose one of none, int4, int8"),
        ({"qat_block": 64}, "qat_block=64 is of training for integers, and qat is none"),
        ({"qat": "int4", "qat_block": 48}, "qat_block=48 is unknown; choose one of 32, 64, 128"),
    ],
)
def test_options_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        options(Path("text"), **changes)
