"""Where a model that gives no numbers began to: the first weight, or the first module."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ouroboros.errors import TrainingError
from ouroboros.training import trainer
from ouroboros.training.divergence import divergence, find_origin, spoilt_gradient
from ouroboros.training.loss import head_loss
from ouroboros.training.run import train
from ouroboros.training.state import list_steps
from ouroboros.training.teacher import Teacher
from tests.support.training import options, tiny_model

IDS = torch.arange(2, 18)[None]


def spoil_weight(model: Any) -> None:
    model.coda[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.norm.weight[0] = float("inf")


def make_overflow(model: Any) -> None:
    """Finite weights, a product that is not: of the query in the loop, and all after it."""
    model.recurrent.layers[0].self_attn.q_proj.weight.fill_(1e38)


def make_head_overflow(model: Any) -> None:
    model.norm.weight.fill_(1e38)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (spoil_weight, "the weight coda.1.mlp.up_proj.weight"),
        (make_overflow, "the output of recurrent.layers.0.self_attn.q_proj"),
        (make_head_overflow, "the output of lm_head"),
    ],
)
def test_origin_is_the_first_part(spoil: Callable[[Any], None], expected: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        spoil(model)
    assert not bool(torch.isfinite(model(IDS, depth=2).logits).all())
    assert find_origin(model, lambda: model(IDS, depth=2)) == expected
    assert not model.norm._forward_hooks


def test_healthy_body_leaves_the_head() -> None:
    model = tiny_model()
    assert find_origin(model, lambda: model(IDS, depth=2)) == "the LM head"


def test_error_names_train_step_part_and_cure() -> None:
    error = divergence("the loss is nan", 7, 1e-3, "the output of norm")
    assert str(error) == (
        "the loss is nan at train step 7 (it began in the output of norm); start over in another "
        "folder with a --learning-rate below 0.001"
    )
    assert str(divergence("the loss is nan", 0, 1e-3)) == (
        "the loss is nan before any training; start from another checkpoint"
    )


@pytest.mark.parametrize(
    ("bridge", "last", "spoilt", "expected"),
    [
        ("entry", "", ["bridge.bias", "recurrent.norm.weight"], "recurrent.norm.weight"),
        ("exit", "bridge.", ["bridge.bias", "recurrent.norm.weight"], "bridge.bias"),
        ("exit", "bridge.", ["bridge.bias", "coda.0.mlp.up_proj.weight"], "coda.0.mlp.up_proj"),
        ("none", "", [], ""),
    ],
)
def test_a_spoilt_gradient_began_in_the_last_part(
    bridge: str, last: str, spoilt: list[str], expected: str
) -> None:
    model = tiny_model(bridge=bridge)
    model.mark_trainable("full")
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    for name, one in trained.items():
        # Finite, but of which no sum of squares is.
        one.grad = torch.full_like(one, math.nan if name in spoilt else 1e30)
    found = spoilt_gradient(trained, last)
    assert found.startswith(f"the gradient of {expected}") if expected else found == ""


def test_a_gradient_that_is_no_number_stops_before_the_update(
    corpus: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain, calls = corpus.parent / "trained", head_loss, []

    def spoil(hidden: torch.Tensor, *others: Any) -> torch.Tensor:
        calls.append(hidden)
        if len(calls) == 3:  # the loss is a number, what goes back from it is not
            hidden.register_hook(lambda gradient: gradient * math.nan)
        return plain(hidden, *others)

    monkeypatch.setattr(trainer, "head_loss", spoil)
    with pytest.raises(
        TrainingError,
        match=r"a gradient is no number at train step 3 \(it began in the gradient of norm\.weight",
    ):
        train(checkpoint, out, options(corpus, train_coda="full", save_every=1))
    assert list_steps(out / "state")[0].name == "step-2"


def test_a_teacher_that_gives_no_numbers_is_named(
    corpus: Path, checkpoint: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Teacher.final_state

    def spoil(self: Teacher, *given: Any) -> torch.Tensor:
        return plain(self, *given) * math.nan

    monkeypatch.setattr(Teacher, "final_state", spoil)
    with pytest.raises(TrainingError, match=r"at train step 1 \(it began in the teacher\)"):
        train(checkpoint, corpus.parent / "trained", options(corpus, teacher=teacher))


def test_one_process_of_many_looks_for_the_part_by_itself(
    corpus: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What wraps the model would wait for others, whose losses may be numbers."""
    calls = []

    class Wrapped(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **given: Any) -> Any:
            calls.append(given)
            output = self.inner(**given)
            output.hidden_states[-1].data.mul_(math.nan)
            return output

    compute = trainer.OuroborosTrainer.compute_loss

    def wrap(self: Any, model: Any, *others: Any, **named: Any) -> Any:
        return compute(self, Wrapped(model), *others, **named)

    monkeypatch.setattr(trainer.OuroborosTrainer, "compute_loss", wrap)
    with pytest.raises(TrainingError, match="the loss is nan at train step 1"):
        train(checkpoint, corpus.parent / "trained", options(corpus))
    assert len(calls) == 1
