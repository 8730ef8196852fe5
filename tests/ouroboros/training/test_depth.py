"""How deep a train step goes, and the terms that ask depth to pay, against plain formulas."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from ouroboros.checkpoint import load_checkpoint, save_checkpoint
from ouroboros.errors import ConfigError
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.source.locate import load_source
from ouroboros.text.windows import collate, load_windows
from ouroboros.training import loss as losses
from ouroboros.training.adapters import mark_trained
from ouroboros.training.depth import DrawnDepth, depth_loss, draw_train_step, greatest_depth
from ouroboros.training.loss import IGNORED
from ouroboros.training.order import RunOrder
from ouroboros.training.recipe import TrainOptions
from ouroboros.training.run import train
from tests.support.training import options, tiny_model, tiny_tokenizer, write_teacher

POSITIONS, HIDDEN, VOCABULARY = 13, 6, 11
IDS = torch.tensor([[5, 9, 2, 7, 11, 3], [8, 2, 2, 30, 4, 6]])


def run(depth: str = "2-9", **changes: object) -> TrainOptions:
    return TrainOptions(data=(Path("x"),), depth=depth, **changes)  # type: ignore[arg-type]


def plain_term(
    deep: torch.Tensor, shallow: torch.Tensor, head: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    own, other = (
        functional.cross_entropy(state @ head.T, labels, ignore_index=IGNORED, reduction="none")
        for state in (deep, shallow.detach())
    )
    return functional.silu(own - other)[labels != IGNORED].sum()


@pytest.mark.parametrize("piece", [1, 4, 100])
@pytest.mark.parametrize("ignored", [(), (0, 5, 12), tuple(range(POSITIONS))])
def test_the_term_and_its_gradient_are_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, piece: int, ignored: tuple[int, ...]
) -> None:
    monkeypatch.setitem(losses.CHUNK_ELEMENTS, "cpu", piece * VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    deep, shallow = torch.randn(2, POSITIONS, HIDDEN, generator=generator, dtype=torch.float64)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, VOCABULARY, (POSITIONS,), generator=generator)
    labels[list(ignored)] = IGNORED
    found, expected = deep.clone().requires_grad_(), deep.clone().requires_grad_()
    shallow.requires_grad_()
    actual, wanted = (
        depth_loss(found, shallow, head, labels),
        plain_term(expected, shallow, head, labels),
    )
    (3 * actual).backward()
    (3 * wanted).backward()
    torch.testing.assert_close(actual.double(), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-11, atol=1e-12)
    assert shallow.grad is None
    # Some are worse and some better, or the test would see one side of the SiLU only.
    if not ignored:
        apart = (deep - shallow) @ head.T
        assert (apart.gather(1, labels[:, None]) > 1).any()
        assert (apart.gather(1, labels[:, None]) < -1).any()


def test_the_curriculum_grows_evenly_to_the_whole_range() -> None:
    chosen = run(depth_curriculum=70)
    tops = [greatest_depth(chosen, step) for step in range(100)]
    assert tops[:70] == [2 + step // 10 for step in range(70)]
    assert set(tops[70:]) == {9}
    drawn = [draw_train_step(chosen, step).depth for step in range(100)]
    assert all(2 <= depth <= top for depth, top in zip(drawn, tops, strict=True))
    assert drawn[:10] == [2] * 10
    assert {greatest_depth(run(), step) for step in range(5)} == {9}


def test_a_shallower_depth_is_drawn_from_seed_and_train_step_alone() -> None:
    chosen = run(depth_term=0.5)
    drawn = [draw_train_step(chosen, step) for step in range(3000)]
    assert drawn == [draw_train_step(chosen, step) for step in range(3000)]
    assert [one.depth for one in drawn] == [draw_train_step(run(), s).depth for s in range(3000)]
    assert all((one.shallow is None) == (one.depth == 2) for one in drawn)
    pairs = {(one.depth, one.shallow) for one in drawn if one.shallow is not None}
    assert pairs == {(depth, less) for depth in range(3, 10) for less in range(2, depth)}
    assert all(draw_train_step(run(), step).shallow is None for step in range(50))
    other = [draw_train_step(run(depth_term=0.5, seed=1), step) for step in range(3000)]
    assert other != drawn


def losses_by_hand(
    model: OuroborosForCausalLM, corpus: Path, tokenizer: object, drawn: DrawnDepth, teacher: Path
) -> tuple[float, float, float]:
    """Mean cross-entropy, mean KL to the teacher, and mean term, of the first train step."""
    windows = load_windows([corpus], tokenizer, 16)
    picked = [windows[index] for index in RunOrder(len(windows), 3, seed=0)]
    batch = collate(picked)
    ids, positions = batch["input_ids"], batch["position_ids"]
    targets = batch["labels"][:, 1:].flatten()
    valid = targets != IGNORED

    def read(which: Any, **depth: int) -> torch.Tensor:
        parts = []
        for row in range(len(ids)):  # document by document, so that nothing here masks
            starts = [*torch.nonzero(positions[row] == 0).flatten().tolist(), 16]
            for first, last in itertools.pairwise(starts):
                output = which(ids[row : row + 1, first:last], **depth)
                parts.append(output.logits[0].detach())
        logits = torch.cat(parts).reshape(len(ids), 16, -1)
        return torch.log_softmax(logits[:, :-1].flatten(0, 1).double(), -1)[valid]

    assert drawn.shallow is not None
    deep, shallow = read(model, depth=drawn.depth), read(model, depth=drawn.shallow)
    wanted = read(load_source(str(teacher)).model)
    place = targets[valid][:, None]
    own, other = -deep.gather(1, place), -shallow.gather(1, place)
    kl = (wanted.exp() * (wanted - deep)).sum(-1)
    return float(own.mean()), float(kl.mean()), float(functional.silu(own - other).mean())


@pytest.mark.parametrize("taught", [False, True])
def test_the_logged_loss_has_the_term(corpus: Path, checkpoint: Path, taught: bool) -> None:
    """Through the loader and the trainer, labels shifted once."""
    teacher = write_teacher(checkpoint, corpus.parent / "teacher")
    extra = {"teacher": str(teacher), "distill": 0.3} if taught else {}
    made = options(
        corpus, depth="1-6", depth_term=2.0, train_steps=1, batch_size=3, seed=0, **extra
    )
    drawn = draw_train_step(made, 0)
    report = train(checkpoint, corpus.parent / "trained", made)
    model, tokenizer = load_checkpoint(checkpoint)
    own, kl, term = losses_by_hand(model, corpus, tokenizer, drawn, teacher)
    expected = (0.7 * own + 0.3 * kl if taught else own) + 2 * term
    assert report.loss == pytest.approx(expected, rel=2e-4)
    assert abs(2 * term) > 1e-2


def gradients(model: OuroborosForCausalLM) -> dict[str, torch.Tensor | None]:
    found = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_gradients_go_back_through_the_last_steps_only(kept: int) -> None:
    """In float64, against a model whose earlier steps ran apart, as a given state."""
    model = tiny_model(bridge="entry").double()
    model.mark_trainable("full", "full")
    whole = model(IDS, labels=IDS, depth=5, output_hidden_states=True)
    part = model(IDS, labels=IDS, depth=5, backprop_steps=kept)
    assert torch.equal(part.loss, whole.loss)
    part.loss.backward()
    found = gradients(model)
    # Step by step: what enters the first kept step is a constant.
    state = whole.hidden_states[2 + 5 - kept].detach()
    step = model.recurrent.forward
    entered = iter([*range(5)])

    def run_from_state(hidden: torch.Tensor, index: int, *rest: object, **more: object) -> object:
        assert next(entered) == index
        if index < 5 - kept:
            return hidden.detach()
        return step(state if index == 5 - kept else hidden, index, *rest, **more)

    model.recurrent.forward = run_from_state
    model(IDS, labels=IDS, depth=5).loss.backward()
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith("bridge"):
            assert found[name] is None
            continue
        assert value is not None
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    norms = found["recurrent.norm.weight"]
    assert norms is not None
    assert [bool(row.any()) for row in norms] == [5 - kept <= index < 5 for index in range(6)]


@pytest.mark.parametrize("kept", [None, 3, 9])
def test_no_fewer_steps_than_the_depth_are_all_of_them(kept: int | None) -> None:
    model = tiny_model(bridge="entry")
    model(IDS, labels=IDS, depth=3).loss.backward()
    whole = gradients(model)
    model(IDS, labels=IDS, depth=3, backprop_steps=kept).loss.backward()
    part = gradients(model)
    for name, value in whole.items():
        found = part[name]
        assert value is not None
        assert found is not None
        assert torch.equal(found, value), name


def test_what_was_cast_without_a_graph_is_not_used_with_one() -> None:
    """Autocast keeps what it casts: of weights cast in the first steps torch must cast anew."""
    model = tiny_model()
    model.mark_trainable("full", "full")
    for kept in (2, None):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(IDS, labels=IDS, depth=4, backprop_steps=kept).loss
        loss.backward()
        missing = [name for name, value in gradients(model).items() if value is None]
        assert missing == []


@pytest.mark.parametrize("wrong", [0, -2, 1.5, True, "4"])
def test_other_numbers_of_steps_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"backprop_steps=.* is no number of steps; give 1 or m"):
        tiny_model()(IDS, depth=2, backprop_steps=wrong)


def test_a_bridge_trains_where_depth_is_within_the_steps(corpus: Path, tmp_path: Path) -> None:
    """At depth 2 of two steps it gets its gradient, at depth 3 none."""
    checkpoint = tmp_path / "bridged"
    save_checkpoint(tiny_model(bridge="entry"), tiny_tokenizer(), checkpoint)
    for depth in ("2", "3"):
        out = tmp_path / depth
        train(checkpoint, out, options(corpus, depth=depth, backprop_steps=2, weight_decay=0.1))
        weight = load_checkpoint(out)[0].get_parameter("bridge.weight")
        assert bool(weight.any()) == (depth == "2")


def test_an_embedding_that_would_get_no_gradient_is_refused(corpus: Path) -> None:
    def mark(depth: str, **changes: Any) -> OuroborosForCausalLM:
        model = tiny_model(**changes)
        mark_trained(model, options(corpus, depth=depth, train_embedding="full", backprop_steps=2))
        return model

    with pytest.raises(ConfigError, match=r"no depth from 3 on.*; give --backprop-steps 3 or more"):
        mark("3-5", tied=False)
    for depth, changes in (
        ("2-5", {"tied": False}),
        ("3-5", {"tied": True}),
        ("3-5", {"tied": False, "input_injection": "add"}),
    ):
        model = mark(depth, **changes)
        model(IDS, labels=IDS, depth=int(depth[0]), backprop_steps=2).loss.backward()
        assert gradients(model)["embed_tokens.weight"] is not None
