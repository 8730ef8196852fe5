"""The objective and its sign, the threshold, and the whole stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from ouroboros.checkpoint import load_checkpoint, save_checkpoint
from ouroboros.errors import ConfigError, DataError, TrainingError
from ouroboros.halting.fit import (
    best_choice,
    expected_cost,
    fit_halter,
    stop_probabilities,
    sweep,
)
from ouroboros.halting.observe import (
    Observations,
    chosen_depths,
    halting_scores,
    observe,
    read_depths,
)
from ouroboros.halting.options import HalterOptions
from ouroboros.halting.run import make_halter, new_halter, prompt_ends
from ouroboros.model.halting import Reading
from ouroboros.model.modeling import OuroborosForCausalLM
from tests.support.training import tiny_model, tiny_tokenizer

DEPTH, WIDTH = 4, 32


def made_up(count: int, seed: int, gains: bool = True) -> Observations:
    """Prompts of two sorts, told apart by the sign of h: one pays for depth, the other is hurt."""
    generator = torch.Generator().manual_seed(seed)
    sort = torch.where(torch.rand(count, generator=generator) < 0.5, 1.0, -1.0)
    state = sort[:, None] * (1 + 0.2 * torch.randn(count, WIDTH, generator=generator))
    steps = torch.arange(DEPTH)
    losses = 3 - 0.1 * sort[:, None] * steps * (1 if gains else -1)
    return Observations(losses, tuple(Reading(state, state, state) for _ in range(DEPTH)))


def test_stop_probabilities_are_a_distribution() -> None:
    """By hand: q = 1/2, 1/4 gives 1/2, 1/2 * 1/4, and the rest to the last."""
    logits = torch.tensor([[0.5, 0.25, 0.9]]).logit()
    assert stop_probabilities(logits)[0].tolist() == pytest.approx([0.5, 0.125, 0.375])


def test_expected_cost_counts_loss_and_price() -> None:
    logits, losses = torch.tensor([[0.5, 0.25, 0.9]]).logit(), torch.tensor([[4.0, 2.0, 1.0]])
    expected = 0.5 * (4 + 0.1) + 0.125 * (2 + 0.2) + 0.375 * (1 + 0.3)
    assert expected_cost(logits, losses, 0.1).item() == pytest.approx(expected)


@pytest.mark.parametrize(("slope", "price", "wanted"), [(-0.1, 0.0, DEPTH), (0.1, 0.0, 1)])
def test_the_sign_is_right(slope: float, price: float, wanted: int) -> None:
    """Where every step helps, all are run; where every step hurts, one."""
    model = tiny_model(max_depth=DEPTH)
    one = made_up(40, 0)
    every = Observations(3 + slope * torch.arange(DEPTH).expand(40, -1).float(), one.readings)
    halter = new_halter(model, "trained")
    fit_halter(halter, every, every, price)
    depths = chosen_depths(halting_scores(halter, every, model), 0.5)
    assert set(depths.tolist()) == {wanted}


def test_a_price_above_what_a_step_gains_stops_at_one() -> None:
    model = tiny_model(max_depth=DEPTH)
    one = made_up(40, 0)
    every = Observations(3 - 0.1 * torch.arange(DEPTH).expand(40, -1), one.readings)
    for price, wanted in ((0.05, DEPTH), (0.2, 1)):
        halter = new_halter(model, "trained")
        fit_halter(halter, every, every, price)
        depths = chosen_depths(halting_scores(halter, every, model), 0.5)
        assert set(depths.tolist()) == {wanted}


def test_a_halter_learns_which_prompts_pay() -> None:
    """On prompts that it never saw: all of the gain that telling the sorts apart can give."""
    model = tiny_model(max_depth=DEPTH)
    halter = new_halter(model, "trained")
    fit_halter(halter, made_up(200, 0), made_up(60, 1), 0.01)
    fresh = made_up(100, 2)
    depths = chosen_depths(halting_scores(halter, fresh, model), 0.5)
    best = (fresh.losses + 0.01 * torch.arange(DEPTH)).argmin(1) + 1
    assert (depths == best).float().mean() > 0.95
    choice = best_choice(sweep(halting_scores(halter, fresh, model), fresh.losses), 0.01)
    fixed = (fresh.losses.mean(0) + 0.01 * torch.arange(1, DEPTH + 1)).min().item()
    assert choice.cost(0.01) < fixed - 0.1


def test_a_cost_that_is_no_number_is_named() -> None:
    model = tiny_model(max_depth=DEPTH)
    broken = made_up(10, 0)
    broken.losses[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="cost is nan"):
        fit_halter(new_halter(model, "trained"), broken, made_up(10, 1), 0.0)


@pytest.mark.parametrize(("depth", "wanted"), [(1, [1]), (3, [1, 2, 3])])
def test_few_depths_are_all_read(depth: int, wanted: list[int]) -> None:
    assert read_depths(depth) == wanted


def test_of_many_depths_some_are_read_and_the_ends_are() -> None:
    found = read_depths(32)
    assert found[0] == 1
    assert found[-1] == 32
    assert len(found) <= 8


@pytest.mark.parametrize("changes", [{}, {"bridge": "exit"}, {"pooling": "token"}])
def test_observed_losses_are_those_of_the_model(changes: dict[str, str]) -> None:
    model = tiny_model(**changes)
    windows = np.random.default_rng(0).integers(3, 40, (2, 16))
    ends, depth = [5, 11], 4
    seen = observe(model, windows, ends, depth, every=1)
    for row, window in enumerate(windows):
        ids = torch.from_numpy(window)[None]
        for step in range(depth):
            with torch.no_grad():
                logits = model(input_ids=ids, depth=step + 1, use_cache=False).logits[0]
            each = functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
            for place, end in enumerate(ends):
                found = seen.losses[row * len(ends) + place, step].item()
                assert found == pytest.approx(each[end - 1 :].mean().item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["trained", "confidence", "distance"])
def test_observed_scores_choose_what_the_model_chooses(kind: str) -> None:
    model = tiny_model(halter=kind, halt_depth=6)
    if kind == "trained":
        with torch.no_grad():
            model.halter.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
            model.halter.bias.fill_(-2)
    windows = np.random.default_rng(0).integers(3, 40, (4, 16))
    ends = [5, 11]
    seen = observe(model, windows, ends, 6)
    with torch.no_grad():
        scores = halting_scores(model.halter, seen, model)
    values = scores[:, :-1].flatten().sort().values
    values = values[(values > 1e-3) & (values < 1)]
    for threshold in ((values[1:] + values[:-1]) / 2)[:: len(values) // 5 + 1].tolist():
        chosen = chosen_depths(scores, threshold).tolist()
        for place, end in enumerate(ends):
            ids = torch.from_numpy(windows[:, :end])
            used = model(input_ids=ids, depth=6, halt_threshold=threshold).depth_used
            assert used.tolist() == chosen[place :: len(ends)]


def test_a_mean_of_the_whole_text_is_refused() -> None:
    windows = np.zeros((1, 16), dtype=np.int64)
    with pytest.raises(ConfigError, match=r"pooling=mean every step reads .* --pooling causal"):
        observe(tiny_model(pooling="mean"), windows, [5], 2)


@pytest.mark.parametrize("ends", [[], [0, 4], [16]])
def test_prompts_that_leave_nothing_are_refused(ends: list[int]) -> None:
    with pytest.raises(DataError, match="must leave"):
        observe(tiny_model(), np.full((1, 16), 3), ends, 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("halting") / "checkpoint"
    model = tiny_model()
    model.config.trained_depths = [1, 2, 3, 4]
    save_checkpoint(model, tiny_tokenizer(), path, {"LICENSE": b"free\n"})
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and runs " * 40)
    return path


@pytest.mark.parametrize("kind", ["trained", "confidence", "distance"])
def test_the_stage_changes_nothing_but_the_halter(
    checkpoint: Path, corpus: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "adaptive"
    checkpoint = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    (checkpoint / "adapters.safetensors").write_bytes(b"factors")
    options = HalterOptions(data=(corpus,), kind=kind, windows=12, seq_len=32, prompts=3)
    report = make_halter(checkpoint, out, options)
    before, after = (load_file(one / "model.safetensors") for one in (checkpoint, out))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert (out / "adapters.safetensors").read_bytes() == b"factors"
    own = {"halter.weight", "halter.bias"} if kind == "trained" else set()
    assert set(after) - set(before) == own
    config = json.loads((out / "config.json").read_text())
    assert (config["halter"], config["halt_depth"]) == (kind, 4)
    assert config["halt_threshold"] == pytest.approx(report.choice.threshold)
    assert (out / "LICENSE").read_text() == "free\n"
    model = load_checkpoint(out)[0]
    assert isinstance(model, OuroborosForCausalLM)
    ids = torch.arange(3, 12)[None]
    used = model(input_ids=ids, depth=4, halt_threshold=report.choice.threshold).depth_used
    assert 1 <= int(used) <= 4
    assert 1 <= report.choice.depth <= 4
    assert len(report.fixed) == 4


def test_a_halter_can_be_made_anew(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    options = HalterOptions(data=(corpus,), windows=12, seq_len=32, prompts=3)
    make_halter(checkpoint, tmp_path / "one", options)
    again = HalterOptions(data=(corpus,), kind="distance", windows=12, seq_len=32, prompts=3)
    make_halter(tmp_path / "one", tmp_path / "two", again)
    assert load_checkpoint(tmp_path / "two")[0].config.halter == "distance"


def test_what_can_not_be_is_refused(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text"):
        make_halter(checkpoint, tmp_path / "out", HalterOptions())
    with pytest.raises(ConfigError, match="depth=9 is above this checkpoint's max_depth 6"):
        make_halter(checkpoint, tmp_path / "out", HalterOptions(data=(corpus,), depth=9))
    short = tmp_path / "short.txt"
    short.write_text("a" * 200)
    with pytest.raises(DataError, match="windows of 120 tokens"):
        make_halter(checkpoint, tmp_path / "out", HalterOptions(data=(short,), seq_len=120))
    with pytest.raises(TrainingError):
        make_halter(checkpoint, checkpoint, HalterOptions(data=(corpus,)))


@pytest.mark.parametrize(
    "fields",
    [{"kind": "best"}, {"depth": 0}, {"windows": 2}, {"price": -1.0}, {"price": float("nan")},
     {"seq_len": 16, "prompts": 5}],
)  # fmt: skip
def test_an_option_outside_its_range_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"is not allowed|unknown|too many"):
        HalterOptions(**fields)


def test_prompts_end_within_three_quarters_of_a_window() -> None:
    assert prompt_ends(HalterOptions(seq_len=256, prompts=6)) == [32, 64, 96, 128, 160, 192]
