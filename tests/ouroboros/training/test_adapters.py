"""Adapters: exact gradients and merges, and nothing of them in what is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ouroboros.checkpoint import load_checkpoint
from ouroboros.errors import ConfigError
from ouroboros.model.configuration import PROJECTIONS
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.storage.adapters import add_updates, read_updates
from ouroboros.training.adapters import Adapters
from ouroboros.training.run import train
from runtime.files.destinations import ADAPTERS
from tests.support.training import options, tiny_model

BOTH = {"train_coda": "lora", "train_recurrent": "lora", "adapter_rank": 3}
IDS = torch.tensor([[5, 9, 2, 7, 11, 3], [8, 2, 2, 30, 4, 6]])


def adapt(model: OuroborosForCausalLM, *places: str) -> Adapters:
    """Puts adapters of rank 3 and scale 2 into a model, as if they had been trained."""
    adapters = Adapters(model, places or ("coda", "recurrent"), 3, 6.0, seed=1)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return adapters


def weights_of(model: OuroborosForCausalLM) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def is_adapted(name: str, *places: str) -> bool:
    prefixes = {"coda": "coda.", "recurrent": "recurrent.layers."}
    inside = name.startswith(tuple(prefixes[place] for place in places))
    return inside and name.endswith(tuple(f".{one}.weight" for one in PROJECTIONS))


def test_the_model_starts_as_it_was() -> None:
    model = tiny_model()
    before = model(IDS, depth=3).logits
    Adapters(model, ("coda", "recurrent"), 3, 6.0, seed=1)
    assert torch.equal(model(IDS, depth=3).logits, before)


def test_what_they_start_as_is_of_the_seed_alone() -> None:
    def start(noise: int, seed: int) -> dict[str, torch.Tensor]:
        model = tiny_model()
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        Adapters(model, ("coda",), 3, 6.0, seed)
        assert torch.equal(torch.get_rng_state(), before)
        return {n: v for n, v in weights_of(model).items() if ".lora_A." in n}

    one, same, other = start(1, 5), start(2, 5), start(1, 6)
    assert len(one) == 2 * len(PROJECTIONS)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not any(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("places", [("coda",), ("recurrent",), ("coda", "recurrent")])
def test_gradients_are_those_through_the_merged_weight(places: tuple[str, ...]) -> None:
    """In float64: of W + s B A, dB = s dW A^T and dA = s B^T dW, dW from plain autograd."""
    torch.set_default_dtype(torch.float32)
    model, plain = tiny_model().double(), tiny_model().double()
    adapt(model, *places)
    model.mark_trainable(*("lora" if one in places else "frozen" for one in ("coda", "recurrent")))
    model(IDS, labels=IDS, depth=4).loss.backward()
    found = {name: value for name, value in model.named_parameters() if value.requires_grad}
    wanted = dict(plain.named_parameters())
    factors = {}
    for name, weight in wanted.items():
        if is_adapted(name, *places):
            a, b = (model.get_parameter(f"{name[:-7]}.lora_{s}.default.weight") for s in "AB")
            factors[name] = (a, b)
            with torch.no_grad():
                weight.add_(2.0 * b @ a)
    plain.requires_grad_(True)
    plain(IDS, labels=IDS, depth=4).loss.backward()
    assert len(factors) == len(PROJECTIONS) * (2 * ("coda" in places) + ("recurrent" in places))
    for name, (a, b) in factors.items():
        slope = wanted[name].grad
        assert slope is not None
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(b.grad, 2.0 * slope @ a.T, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a.grad, 2.0 * b.T @ slope, rtol=1e-9, atol=1e-12)
    assert any("norm" in name for name in found if name.startswith(("coda", "recurrent.layers")))
    for name, value in found.items():
        if ".lora_" not in name:
            torch.testing.assert_close(value.grad, wanted[name].grad, rtol=1e-9, atol=1e-12)


def test_merging_leaves_a_plain_model_that_computes_the_same() -> None:
    model = tiny_model()
    before = weights_of(model)
    adapters = adapt(model)
    changed = model(IDS, depth=3).logits
    updates = adapters.merge()
    after = weights_of(model)
    assert after.keys() == before.keys()
    assert not hasattr(model, "peft_config")
    assert {n for n in before if not torch.equal(before[n], after[n])} == updates.keys()
    assert all(is_adapted(name, "coda", "recurrent") for name in updates)
    assert len(updates) == 3 * len(PROJECTIONS)
    for name, update in updates.items():
        assert update.fits(before[name].shape)
        assert torch.equal(add_updates(before[name], [update]), after[name])
    torch.testing.assert_close(model(IDS, depth=3).logits, changed, rtol=1e-4, atol=1e-4)
    assert (tiny_model()(IDS, depth=3).logits - changed).abs().max() > 0.1


def test_a_rank_above_the_smallest_side_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"adapter rank 17 is above 16, .*--adapter-rank 16 or"):
        Adapters(tiny_model(), ("coda",), 17, 1.0, seed=0)


@pytest.mark.parametrize("places", [("coda",), ("recurrent",), ("coda", "recurrent")])
def test_a_run_publishes_merged_weights_and_their_factors(
    corpus: Path, checkpoint: Path, places: tuple[str, ...]
) -> None:
    out = corpus.parent / "trained"
    changes = {f"train_{place}": "lora" for place in places}
    train(checkpoint, out, options(corpus, depth="6", adapter_rank=3, **changes))
    before, after = load_checkpoint(checkpoint)[0], load_checkpoint(out)[0]
    after.mark_trainable(*("lora" if one in places else "frozen" for one in ("coda", "recurrent")))
    trained = set(after.trainable_names())  # of a model without adapters: the norms and the rest
    updates = read_updates(out)
    for name, value in before.state_dict().items():
        new = after.state_dict()[name]
        assert (name in updates) == is_adapted(name, *places), name
        assert torch.equal(value, new) != (name in trained or name in updates), name
        if name in updates:
            assert torch.equal(add_updates(value, updates[name]), new)


def test_the_scale_is_alpha_over_rank(corpus: Path, checkpoint: Path) -> None:
    """After one step of Adam the factor B is +-1 learning rate, whatever the gradient's size."""
    found = []
    for alpha in (3.0, 12.0):
        out = corpus.parent / f"alpha-{alpha:g}"
        run = options(corpus, **BOTH, adapter_alpha=alpha, train_steps=1, warmup=0)
        train(checkpoint, out, run)
        found.append(read_updates(out)["coda.0.mlp.up_proj.weight"][0].b.abs())
    assert [float(one.median()) for one in found] == pytest.approx([1e-2, 4e-2], rel=1e-3)


@pytest.mark.slow
def test_updates_of_earlier_runs_stay_as_long_as_they_hold(corpus: Path, checkpoint: Path) -> None:
    """A second run adds a second update; a run that trains a weight in full ends its updates."""
    places = [corpus.parent / name for name in ("one", "two", "norms", "full")]
    runs: list[dict[str, Any]] = [
        BOTH, {**BOTH, "seed": 1}, {"train_coda": "norms"}, {"train_coda": "full"}
    ]  # fmt: skip
    start = checkpoint
    for out, changes in zip(places, runs, strict=True):
        train(start, out, options(corpus, **changes))
        start = out
    first, second, third, fourth = (read_updates(out) for out in places)
    original = load_checkpoint(checkpoint)[0].state_dict()
    merged = load_checkpoint(places[2])[0].state_dict()
    assert {len(ones) for ones in first.values()} == {1}
    assert {len(ones) for ones in second.values()} == {2}
    assert (places[2] / ADAPTERS).read_bytes() == (places[1] / ADAPTERS).read_bytes()
    for name, updates in third.items():
        assert torch.equal(add_updates(original[name], updates), merged[name])
    assert fourth.keys() == {name for name in third if name.startswith("recurrent.")}


def test_no_adapters_leave_no_file(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    train(checkpoint, out, options(corpus, **BOTH, train_steps=1))
    assert (out / ADAPTERS).is_file()
    again = corpus.parent / "again"
    train(checkpoint, again, options(corpus, train_coda="full", train_steps=1))
    assert not (again / ADAPTERS).exists()
