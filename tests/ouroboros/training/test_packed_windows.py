"""Packed windows: documents apart, labels shifted once, also as the Trainer and PEFT take them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from ouroboros.checkpoint import load_checkpoint
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.text.windows import collate, load_windows
from ouroboros.training.order import RunOrder
from ouroboros.training.run import train
from tests.support.training import options, packed, tiny_model


@pytest.mark.parametrize("pooling", ["causal", "token", "mean"])
def test_packed_window_equals_its_documents_alone(pooling: str) -> None:
    model = tiny_model(pooling=pooling)
    windows = packed()
    for index in range(len(windows)):
        batch = collate([windows[index]])
        together = model(batch["input_ids"], position_ids=batch["position_ids"], depth=3).logits[0]
        starts = [*torch.nonzero(batch["position_ids"][0] == 0).flatten().tolist(), 24]
        assert index > 0 or len(starts) > 2
        for first, last in itertools.pairwise(starts):
            alone = model(batch["input_ids"][:, first:last], depth=3).logits[0]
            torch.testing.assert_close(together[first:last], alone, rtol=1e-4, atol=1e-3)
            if first > 0:  # the test can fail: without the restart they differ a hundred times more
                mixed = model(batch["input_ids"], depth=3).logits[0]
                assert (mixed[first:last] - alone).abs().max() > 0.1


def test_labels_are_shifted_exactly_once() -> None:
    """The loss is -log p(next token), summed by hand over the pairs within a document."""
    model = tiny_model()
    windows = packed()
    total, count, twice = 0.0, 0, 0.0
    for index in range(len(windows)):
        window = {name: torch.from_numpy(array) for name, array in windows[index].items()}
        ids, positions = window["input_ids"], window["position_ids"]
        logits = model(ids[None], position_ids=positions[None], depth=2).logits[0].detach()
        log_p = torch.log_softmax(logits.double(), dim=-1)
        for t in range(len(ids) - 1):
            if positions[t + 1] != 0:
                total -= float(log_p[t, ids[t + 1]])
                count += 1
                twice -= float(log_p[t, ids[min(t + 2, len(ids) - 1)]])
    batch = collate([windows[index] for index in range(len(windows))])
    loss = float(model(**batch, depth=2).loss.detach())
    assert loss == pytest.approx(total / count, rel=1e-5)
    assert abs(loss - twice / count) > 1e-2


def test_logged_loss_is_of_the_next_token(corpus: Path, checkpoint: Path) -> None:
    """Through the loader and the Trainer: a shift of theirs would make it next-next-token."""
    out = corpus.parent / "trained"
    report = train(checkpoint, out, options(corpus, depth="2", train_steps=1, batch_size=3))
    model, tokenizer = load_checkpoint(checkpoint)
    windows = load_windows([corpus], tokenizer, 16)
    losses, twice = [], []
    for index in RunOrder(len(windows), 3, seed=0):
        ids, positions = (
            torch.from_numpy(windows[index][name]) for name in ("input_ids", "position_ids")
        )
        logits = model(ids[None], position_ids=positions[None], depth=2).logits[0].detach()
        log_p = torch.log_softmax(logits.double(), dim=-1)
        inside = [t for t in range(15) if positions[t + 1] != 0]
        losses += [-float(log_p[t, ids[t + 1]]) for t in inside]
        twice += [-float(log_p[t, ids[min(t + 2, 15)]]) for t in inside]
    assert report.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert abs(report.loss - np.mean(twice)) > 1e-2


def test_plain_trainer_takes_the_model(tmp_path: Path) -> None:
    """Trains, scores, saves and loads with nothing of ours but the model and the data."""
    model = tiny_model()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        disable_tqdm=True, save_steps=12, learning_rate=1e-2, dataloader_pin_memory=False,
        eval_strategy="steps", eval_steps=12, eval_on_start=True, label_names=["labels"],
    )  # fmt: skip
    windows = packed(8)
    trainer = Trainer(
        model, arguments, train_dataset=windows, eval_dataset=windows, data_collator=collate
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2
    assert losses[1] < losses[0] - 0.1
    loaded = OuroborosForCausalLM.from_pretrained(tmp_path / "checkpoint-12")
    for name, value in loaded.named_parameters():
        torch.testing.assert_close(value, model.get_parameter(name), rtol=0, atol=0)
        assert name not in frozen or torch.equal(value, frozen[name])


# PEFT 0.21 still reads transformers' old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_wraps_the_model_and_trains_a_step(tmp_path: Path) -> None:
    import peft

    lora = peft.LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(), lora)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert before
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no", learning_rate=1e-2, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=packed(8), data_collator=collate)
    assert math.isfinite(trainer.train().training_loss)
    after = dict(model.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
