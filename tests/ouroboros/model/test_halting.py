"""A row that halts is the row run at that depth; scores are read where the prompt ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ouroboros import OuroborosForCausalLM
from ouroboros.errors import ConfigError
from ouroboros.model.cache import CACHE
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.halting import Halter, Halting, Reading
from ouroboros.model.pooling import describe_sequences
from tests.support.training import tiny_model

ROWS, PROMPT, NEW, STEPS = 4, 9, 5, 6
KINDS = ("trained", "confidence", "distance")
OPTIONS: dict[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*right-padding:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*never trained:UserWarning"),
]


def halting_model(kind: str) -> OuroborosForCausalLM:
    """Its head is not tied, so that what is generated depends on what was run."""
    model = tiny_model(halter=kind, halt_depth=STEPS)
    generator = torch.Generator().manual_seed(5)
    head = torch.randn(model.lm_head.weight.shape, generator=generator)
    model.lm_head.weight = torch.nn.Parameter(head)
    if kind == "trained":
        with torch.no_grad():
            model.halter.weight.normal_(std=0.3, generator=generator)
            model.halter.bias.fill_(-2)
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> OuroborosForCausalLM:
    return halting_model(request.param)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, 40, (ROWS, PROMPT), generator=generator)


def scores_of(model: OuroborosForCausalLM, ids: torch.Tensor) -> list[torch.Tensor]:
    """The scores after each step, by the formulas of the module's docstring, in plain numbers."""
    states: list[torch.Tensor] = []
    handle = model.recurrent.register_forward_hook(
        lambda module, inputs, output: states.extend([inputs[0], output])
    )
    with torch.no_grad():
        model(input_ids=ids, depth=STEPS)
    handle.remove()
    score, found = torch.zeros(len(ids)), []
    for step in range(STEPS):
        old, new = (states[2 * step + place].detach() for place in (0, 1))
        match model.config.halter:
            case "trained":
                parts = [new[:, -1], new.mean(1)]
                scaled = [x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() for x in parts]
                p = torch.sigmoid(
                    torch.cat(scaled, -1) @ model.halter.weight + model.halter.bias[step]
                )
                score = 1 - (1 - score) * (1 - p)
            case "confidence":
                score = model.lm_head(model.norm(new[:, -1])).softmax(-1).amax(-1)
            case _:
                score = 1 - (new - old)[:, -1].norm(dim=-1) / new[:, -1].norm(dim=-1)
        found.append(score.detach())
    return found


def between(scores: list[torch.Tensor]) -> float:
    """A threshold at which rows halt at different steps, far from every score."""
    values = torch.stack(scores)[:-1].flatten().sort().values
    values = values[(values > 0) & (values <= 1)]
    middles = (values[1:] + values[:-1]) / 2
    wide = (values[1:] - values[:-1]) > 1e-4
    usable = [float(one) for one in middles[wide]]
    return max(usable, key=lambda one: len(set(first_reached(scores, one))))


def first_reached(scores: list[torch.Tensor], threshold: float) -> list[int]:
    reached = torch.stack(scores, 1) >= threshold
    reached[:, -1] = True
    return (reached.long().argmax(1) + 1).tolist()


def test_a_row_halts_where_its_score_reaches_the_threshold(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    scores = scores_of(model, ids)
    threshold = between(scores)
    used = model(input_ids=ids, depth=STEPS, halt_threshold=threshold).depth_used.tolist()
    assert used == first_reached(scores, threshold)
    assert len(set(used)) > 1


def test_a_row_that_halted_is_the_row_run_at_that_depth(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    threshold = between(scores_of(model, ids))
    found = model(input_ids=ids, depth=STEPS, halt_threshold=threshold)
    fixed = model(input_ids=ids, depth=found.depth_used)
    assert torch.equal(found.logits, fixed.logits)


def test_row_depth_bounds_what_is_chosen_and_zero_stops_nothing(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    threshold = between(scores_of(model, ids))
    free = model(input_ids=ids, depth=STEPS, halt_threshold=threshold).depth_used
    depths = torch.tensor([2, STEPS, 1, 3])
    bound = model(input_ids=ids, depth=depths, halt_threshold=threshold).depth_used
    assert bound.tolist() == torch.minimum(free, depths).tolist()
    assert model(input_ids=ids, depth=depths, halt_threshold=0.0).depth_used.tolist() == (
        depths.tolist()
    )
    assert model(input_ids=ids, depth=depths).depth_used is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_choice(
    model: OuroborosForCausalLM, ids: torch.Tensor, side: str
) -> None:
    threshold = between(scores_of(model, ids))
    alone = model(input_ids=ids, depth=STEPS, halt_threshold=threshold).depth_used
    junk = torch.full((ROWS, 3), 7)
    parts, valid = [junk, ids], [torch.zeros_like(junk), torch.ones_like(ids)]
    if side == "right":
        parts.reverse()
        valid.reverse()
    padded = model(
        input_ids=torch.cat(parts, 1),
        attention_mask=torch.cat(valid, 1),
        depth=STEPS,
        halt_threshold=threshold,
    )
    assert padded.depth_used.tolist() == alone.tolist()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("right", [0, 3])
def test_generate_chooses_on_the_prompt_and_keeps_the_depth(
    model: OuroborosForCausalLM, ids: torch.Tensor, beams: int, right: int
) -> None:
    threshold = between(scores_of(model, ids))
    mask = torch.ones_like(ids)
    mask[0, PROMPT - right :] = 0
    options = {**OPTIONS, "num_beams": beams, "attention_mask": mask}
    found = model.generate(ids, depth="auto", halt_threshold=threshold, **options)
    call = model(input_ids=ids, attention_mask=mask, depth=STEPS, halt_threshold=threshold)
    fixed = model.generate(ids, depth=call.depth_used, **options)
    assert torch.equal(found, fixed)
    deepest = model.generate(ids, depth=STEPS, **options)
    assert not torch.equal(found, deepest)


def test_generate_takes_the_threshold_of_the_config(ids: torch.Tensor) -> None:
    model = halting_model("distance")
    model.config.halt_threshold = 1e-3  # every row halts after one step, unless it moved by all
    found = model.generate(ids, depth="auto", **OPTIONS)
    used = model(input_ids=ids, depth=STEPS, halt_threshold=1e-3).depth_used
    assert torch.equal(found, model.generate(ids, depth=used, **OPTIONS))
    assert int(used.max()) < STEPS


def test_a_model_without_a_halter_says_how_to_get_one(ids: torch.Tensor) -> None:
    model = tiny_model()
    for call in (
        lambda: model.generate(ids, depth="auto", **OPTIONS),
        lambda: model(input_ids=ids, halt_threshold=0.5),
    ):
        with pytest.raises(ConfigError, match=r"no halter.*ouro halter"):
            call()


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan, True, "much"])
def test_a_threshold_outside_its_range_is_refused(
    model: OuroborosForCausalLM, ids: torch.Tensor, threshold: Any
) -> None:
    with pytest.raises(ConfigError, match=r"halt_threshold=.*0\.\.1"):
        model(input_ids=ids, halt_threshold=threshold)


def test_a_choice_beside_a_cache_is_refused(model: OuroborosForCausalLM, ids: torch.Tensor) -> None:
    cache = model(input_ids=ids, depth=STEPS, use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="9 cached tokens"):
        model(input_ids=ids[:, :1], past_key_values=cache, depth=STEPS, halt_threshold=0.5)
    whole = torch.cat([ids, ids[:, :1]], 1)
    with pytest.raises(ConfigError, match="beside a cache"):
        model.generate(whole, **{CACHE: cache}, depth="auto", **OPTIONS)


def test_a_threshold_at_a_fixed_depth_is_refused(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    with pytest.raises(ConfigError, match="no effect at a fixed depth"):
        model.generate(ids, depth=3, halt_threshold=0.5, **OPTIONS)


def test_chunks_and_documents_have_no_depth_of_their_own(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    with pytest.raises(ConfigError, match="chosen on the whole prompt"):
        model.generate(ids, depth="auto", prefill_chunk_size=4, **OPTIONS)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(ROWS, -1)
    with pytest.raises(ConfigError, match="packed documents"):
        model(input_ids=ids, position_ids=positions, halt_threshold=0.5)


@pytest.mark.parametrize(
    "fields",
    [
        {"halter": "learned", "halt_depth": 2},
        {"halter": "trained"},
        {"halter": "trained", "halt_depth": 7},
        {"halter": "trained", "halt_depth": 2, "halt_threshold": 0.0},
        {"halter": "trained", "halt_depth": 2, "halt_threshold": 1.5},
    ],
)
def test_a_config_that_can_not_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        tiny_model(**fields)


def test_halting_is_in_float32_whatever_the_weights() -> None:
    config = tiny_model(halter="trained", halt_depth=STEPS).config
    halter = Halter(OuroborosConfig.from_dict(config.to_dict())).bfloat16()
    sequences = describe_sequences(1, 2, 0, None, None, torch.device("cpu"))
    halting = Halting(halter, 0.5, sequences, lambda h: h)
    hidden = torch.ones(1, 2, config.hidden_size, dtype=torch.bfloat16)
    halting.take(0, torch.tensor([True]), hidden, hidden)
    assert halting.score.dtype == torch.float32


def test_trained_scores_grow_to_the_probability_of_having_halted() -> None:
    """1 - (1 - 1/2)^n where every step halts half of what is left."""
    config = tiny_model(halter="trained", halt_depth=STEPS).config
    halter = Halter(config)
    state = torch.randn(1, config.hidden_size)
    score = torch.zeros(1)
    for step in range(STEPS):
        score = halter(score, Reading(state, state, state), step, lambda h: h)
        assert score.item() == pytest.approx(1 - 0.5 ** (step + 1))
