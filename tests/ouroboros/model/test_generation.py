"""generate() and forward as transformers' users call them: what works, what is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    Trainer,
    TrainingArguments,
)

from ouroboros import OuroborosForCausalLM, load_checkpoint
from ouroboros.errors import ConfigError
from ouroboros.model.cache import CACHE, OuroborosCache

ROWS, PROMPT, NEW = 2, 9, 5
OPTIONS: dict[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
}
LEFT, RIGHT = slice(0, 3), slice(PROMPT - 3, PROMPT)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*right-padding:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*never trained:UserWarning"),
]


@pytest.fixture(scope="module")
def shared(tiny_checkpoint: Path) -> OuroborosForCausalLM:
    """Its head is not tied: a random tied one makes every token repeat itself, whatever is run."""
    model = load_checkpoint(tiny_checkpoint)[0]
    generator = torch.Generator().manual_seed(5)
    head = torch.randn(model.lm_head.weight.shape, generator=generator)
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    return model


@pytest.fixture
def model(shared: OuroborosForCausalLM) -> Iterator[OuroborosForCausalLM]:
    before = dict(vars(shared.config)), dict(vars(shared.generation_config))
    yield shared
    for kept, held in zip(before, (shared.config, shared.generation_config), strict=True):
        vars(held).clear()
        vars(held).update(kept)


@pytest.fixture
def ids(model: OuroborosForCausalLM) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, model.config.vocab_size, (ROWS, PROMPT), generator=generator)


def generate(model: OuroborosForCausalLM, ids: torch.Tensor | None, **options: Any) -> Any:
    return model.generate(ids, **{**OPTIONS, **options})


def padded(columns: slice) -> torch.Tensor:
    mask = torch.ones(ROWS, PROMPT, dtype=torch.long)
    mask[0, columns] = 0
    return mask


@pytest.mark.parametrize("mask", [None, padded(LEFT), padded(RIGHT)])
@pytest.mark.parametrize("beams", [1, 3])
def test_embeddings_generate_what_their_tokens_do(
    model: OuroborosForCausalLM, ids: torch.Tensor, mask: torch.Tensor | None, beams: int
) -> None:
    options = {"attention_mask": mask, "num_beams": beams, "depth": [4, 2]}
    embeddings = model.get_input_embeddings()(ids)
    expected = generate(model, ids, **options)
    alone = generate(model, None, inputs_embeds=embeddings, **options)
    assert torch.equal(alone, expected[:, PROMPT:])
    assert torch.equal(generate(model, ids, inputs_embeds=embeddings, **options), expected)


@pytest.mark.parametrize("mask", [padded(LEFT), padded(RIGHT)])
def test_padded_rows_continue_as_alone_with_and_without_a_cache(
    model: OuroborosForCausalLM, ids: torch.Tensor, mask: torch.Tensor
) -> None:
    alone = generate(model, ids[:1, mask[0] == 1])[:, -NEW:]
    for use_cache in (True, False):
        both = generate(model, ids, attention_mask=mask, use_cache=use_cache)
        assert torch.equal(both[:1, PROMPT:], alone)


def test_positions_of_the_caller_are_used(model: OuroborosForCausalLM, ids: torch.Tensor) -> None:
    """A mask must not bring the counted positions back."""
    seen: list[torch.Tensor] = []
    hook = model.rotary_emb.register_forward_hook(
        lambda module, given, named, out: seen.append(named["position_ids"]), with_kwargs=True
    )
    positions = (padded(LEFT).cumsum(-1) - 1).clamp(min=0) * 3 + 1
    try:
        generate(model, ids, attention_mask=padded(LEFT), position_ids=positions)
    finally:
        hook.remove()
    assert torch.equal(seen[0], positions)
    assert seen[1].flatten().tolist() == (positions[:, -1] + 1).tolist()


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda d: list(np.array(d))])
def test_depths_of_rows_come_in_any_kind_and_are_repeated(
    model: OuroborosForCausalLM, ids: torch.Tensor, kind: Any
) -> None:
    depths = (1, 4)
    rows = [generate(model, ids[r : r + 1], depth=d, num_beams=3) for r, d in enumerate(depths)]
    together = generate(model, ids, depth=kind(depths), num_beams=3, num_return_sequences=2)
    assert together.shape == (2 * ROWS, PROMPT + NEW)
    assert torch.equal(together[::2], torch.cat(rows))
    assert generate(model, ids, depth=kind(depths), do_sample=True).shape[0] == ROWS


WRONG_DEPTHS = [
    (0, "depth=0 is outside"),
    (-1, "depth=-1 is outside"),
    (9, "depth=9 is outside"),
    (10**30, "is outside"),
    (True, "depth=True is no whole number"),
    ([True, 1], "depth=True is no whole number"),
    (2.0, r"depth=2\.0 is no whole number"),
    (torch.tensor([2.0, 1.5]), "no whole number"),
    ("3", "no whole number"),
    ([], "0 entries for 2 rows"),
    ([1, 2, 3], "3 entries for 2 rows"),
    (torch.tensor([[1], [2]]), "no whole number"),
]


@pytest.mark.parametrize(("depth", "words"), WRONG_DEPTHS)
def test_wrong_depths_are_refused_in_one_line(
    model: OuroborosForCausalLM, ids: torch.Tensor, depth: Any, words: str
) -> None:
    calls = (
        lambda: model(ids, depth=depth),
        lambda: generate(model, ids, depth=depth),
        lambda: generate(model, ids, depth=depth, num_beams=3),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_depth_of_a_generation_config_is_used_and_can_be_overruled(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    model.generation_config.depth = 1
    assert torch.equal(generate(model, ids), generate(model, ids, depth=1))
    deep = generate(model, ids, depth=4)
    assert not torch.equal(deep, generate(model, ids))
    given = GenerationConfig(depth=4, **OPTIONS)
    assert torch.equal(model.generate(ids, generation_config=given), deep)
    assert torch.equal(generate(model, ids, depth=[4, 4]), deep)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"cache_implementation": "static"}, "cache_implementation='static'"),
    ({"cache_implementation": "quantized"}, "cache_implementation='quantized'"),
    ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded'"),
    ({"cache_implementation": "paged"}, "cache_implementation='paged'"),
    ({"prompt_lookup_num_tokens": 3}, "assisted_generation"),
    ({"assistant_early_exit": 2}, "assisted_generation"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive_search"),
    ({"dola_layers": "low"}, "dola_generation"),
    ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "group_beam_search"),
    ({"num_beams": 4, "force_words_ids": [[5]]}, "constrained_beam_search"),
    ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    ({"attention_mask": torch.ones(ROWS, 1, PROMPT, PROMPT)}, r"attention_mask has shape \[2, 1"),
    ({"attention_mask": torch.ones(ROWS, PROMPT - 1)}, r"shape \[2, 8\]; give \[2, 9\]"),
    ({"attention_mask": torch.ones(ROWS, PROMPT + 1)}, r"shape \[2, 10\]; give \[2, 9\]"),
    ({"prefill_chunk_size": 4, "attention_mask": padded(RIGHT)}, "right padding"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_generation_modes_that_are_not_built_are_named(
    model: OuroborosForCausalLM, ids: torch.Tensor, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        generate(model, ids, **options)
    assert "\n" not in str(caught.value)


def test_assistants_and_batches_by_pages_are_refused(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    with pytest.raises(ConfigError, match="assisted_generation"):
        generate(model, ids[:1], assistant_model=model)
    with pytest.raises(ConfigError, match="continuous batching"):
        model.generate_batch([[5, 6]])
    with pytest.raises(ConfigError, match="2 rows of 0 tokens"):
        generate(model, ids[:, :0])


@pytest.mark.parametrize("kind", ["dynamic", "static", "tuple"])
def test_caches_of_another_kind_are_refused(
    model: OuroborosForCausalLM, ids: torch.Tensor, kind: str
) -> None:
    made: dict[str, Any] = {
        "dynamic": DynamicCache(),
        "static": StaticCache(config=model.config, max_cache_len=32),
        "tuple": ((ids, ids),),
    }
    for call in (generate, lambda model, ids, **cache: model(ids, **cache)):
        with pytest.raises(ConfigError, match=r"past_key_values is a .*OuroborosCache") as caught:
            call(model, ids, **{CACHE: made[kind]})
        assert "\n" not in str(caught.value)


def test_caches_are_gone_on_from_only_where_they_fit(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    out = generate(model, ids, return_dict_in_generate=True)
    more = generate(model, out.sequences, **{CACHE: out[CACHE]}, max_new_tokens=3)
    assert torch.equal(more, generate(model, ids, max_new_tokens=NEW + 3))
    own = OuroborosCache(model.config.num_layers)
    assert torch.equal(generate(model, ids, **{CACHE: own}), out.sequences)
    shallow = model(ids, depth=2, use_cache=True).past_key_values
    with pytest.raises(ConfigError, match=r"depth=3 can't go on .* depth 2"):
        model(ids[:, :1], past_key_values=shallow, depth=3)
    with pytest.raises(ConfigError, match="holds 2 rows and the input 1"):
        model(ids[:1, :1], past_key_values=shallow, depth=2)


def test_a_cache_by_its_old_name_is_gone_on_from(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    out = generate(model, ids, return_dict_in_generate=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # since 5.24, of the old name
        more = generate(model, out.sequences, past_key_values=out[CACHE], max_new_tokens=3)
    assert torch.equal(more, generate(model, ids, max_new_tokens=NEW + 3))


def test_prompts_in_chunks_and_other_modes_work(
    model: OuroborosForCausalLM, ids: torch.Tensor, tiny_checkpoint: Path
) -> None:
    plain = generate(model, ids)
    assert torch.equal(generate(model, ids, prefill_chunk_size=4), plain)
    assert torch.equal(generate(model, ids, cache_implementation="dynamic"), plain)
    left = padded(LEFT)
    chunked = generate(model, ids, attention_mask=left, prefill_chunk_size=4)
    assert torch.equal(chunked, generate(model, ids, attention_mask=left))
    for options in ({"do_sample": True, "num_return_sequences": 2}, {"num_beams": 2}):
        assert generate(model, ids, **options).shape[1] == PROMPT + NEW
    tokenizer = load_checkpoint(tiny_checkpoint)[1]
    letters = set(tokenizer("".join(map(chr, range(97, 123)))).input_ids)
    options = {"suppress_tokens": [i for i in range(model.vocab_size) if i not in letters]}
    word = tokenizer.decode(generate(model, ids[:1], **options)[0, PROMPT + 1])
    stopped = generate(model, ids[:1], stop_strings=[word], tokenizer=tokenizer, **options)
    assert tokenizer.decode(stopped[0, -1]) == word
    assert stopped.shape[1] <= PROMPT + 2


@torch.no_grad()
def test_hidden_states_are_what_enters_each_layer(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    out = model(ids, depth=3, output_hidden_states=True, logits_to_keep=1)
    states = out.hidden_states
    assert len(states) == 1 + model.config.num_layers + 3
    assert all(state.shape == (ROWS, PROMPT, model.config.hidden_size) for state in states)
    assert torch.equal(states[0], model.embed_tokens(ids))
    assert torch.equal(model.lm_head(states[-1][:, -1:]), out.logits)
    assert model(ids).hidden_states is None
    # The state before step 1 does not know how many steps follow; a done row repeats its own.
    mixed = model(ids, depth=[3, 1], output_hidden_states=True).hidden_states
    first = model.config.prelude
    torch.testing.assert_close(mixed[first + 1], states[first + 1])
    assert torch.equal(mixed[first + 2][1], mixed[first + 1][1])
    model.config.output_hidden_states = True
    assert len(model(ids, depth=3).hidden_states) == len(states)
    assert model(ids, output_hidden_states=False).hidden_states is None
    wanted = {"return_dict_in_generate": True, "output_hidden_states": True}
    made = generate(model, ids, depth=3, **wanted)
    assert [len(step) for step in made.hidden_states] == [len(states)] * NEW


@torch.no_grad()
def test_tuples_are_given_where_asked_for(model: OuroborosForCausalLM, ids: torch.Tensor) -> None:
    out = model(ids, labels=ids)
    loss, logits, cache = model(ids, labels=ids, return_dict=False)
    assert loss == out.loss
    assert torch.equal(logits, out.logits)
    assert isinstance(cache, OuroborosCache)
    model.config.return_dict = False
    assert isinstance(model(ids), tuple)
    assert model(ids, return_dict=True).logits is not None
    assert generate(model, ids).shape == (ROWS, PROMPT + NEW)


FORWARD: list[tuple[dict[str, Any], str]] = [
    ({"dpeth": 4}, "no argument dpeth; did you mean depth"),
    ({"label": 1}, "no argument label; did you mean labels"),
    ({"num_item_in_batch": 1}, "did you mean num_items_in_batch"),
    ({"head_mask": torch.ones(2)}, "no argument head_mask"),
    ({"cu_seq_lens_q": torch.tensor([0, 9])}, "no argument cu_seq_lens_q"),
    ({"is_causal": False}, "no argument is_causal"),
    ({"token_type_ids": torch.ones(ROWS, PROMPT)}, "no argument token_type_ids"),
    ({"output_attentions": True}, "output_attentions is not built"),
    ({"attention_mask": torch.ones(ROWS, 1, PROMPT, PROMPT)}, "attention_mask has shape"),
    ({"attention_mask": torch.ones(1, PROMPT)}, "attention_mask has shape"),
    ({"position_ids": torch.arange(PROMPT - 1)[None]}, "position_ids has shape"),
    ({"logit_index": torch.tensor([8])}, "logit_index has shape"),
    ({"labels": torch.ones(ROWS, PROMPT).long(), "logits_to_keep": 1}, "labels need all logits"),
]


@pytest.mark.parametrize(("arguments", "words"), FORWARD)
def test_arguments_that_would_be_ignored_are_refused(
    model: OuroborosForCausalLM, ids: torch.Tensor, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        model(ids, **arguments)
    assert "\n" not in str(caught.value)


def test_arguments_without_effect_pass(model: OuroborosForCausalLM, ids: torch.Tensor) -> None:
    idle = {"token_type_ids": torch.zeros_like(ids), "output_attentions": False, "head_mask": None}
    assert torch.equal(model(ids, **idle).logits, model(ids).logits)


def test_attention_chosen_by_name_reaches_every_layer(tiny_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, attn_implementation="eager")

    def chosen() -> set[str]:
        layers = (*model.prelude, *model.recurrent.layers, *model.coda)
        return {layer.self_attn.config._attn_implementation for layer in layers}

    assert chosen() == {"eager"}
    model.set_attn_implementation("sdpa")
    assert chosen() == {"sdpa"}
    for name in ("paged|eager", "flash_attention_2"):
        with pytest.raises(ValueError, match=r"not built|not support"):
            AutoModelForCausalLM.from_pretrained(tiny_checkpoint, attn_implementation=name)
    with pytest.raises(ConfigError, match="output_attentions"):
        AutoModelForCausalLM.from_pretrained(
            tiny_checkpoint, attn_implementation="eager", output_attentions=True
        )(torch.ones(1, 2).long())
    with pytest.raises(ValueError, match="checkpointing"):
        model.activation_checkpointing_enable()


def test_given_embeddings_are_back_propagated_to(
    model: OuroborosForCausalLM, ids: torch.Tensor
) -> None:
    """Soft prompts train through a frozen prelude."""
    embeddings = model.embed_tokens(ids).detach().requires_grad_()
    model(inputs_embeds=embeddings, labels=ids).loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().max() > 0
    model.zero_grad()


def test_label_smoothing_shifts_as_the_model_does(
    tiny_checkpoint: Path, tmp_path: Path, ids: torch.Tensor
) -> None:
    """transformers' Trainer shifts for the causal models whose class name it knows."""
    model = load_checkpoint(tiny_checkpoint)[0]
    arguments = TrainingArguments(
        str(tmp_path), label_smoothing_factor=1e-9, report_to=[], use_cpu=True
    )
    trainer = Trainer(model, arguments)
    loss = trainer.compute_loss(model, {"input_ids": ids, "labels": ids})
    torch.testing.assert_close(loss, model(ids, labels=ids).loss)


def test_a_cache_is_known_by_both_names_that_transformers_has_had_for_it(
    model: OuroborosForCausalLM,
) -> None:
    """`past_key_values` up to 5.23, `cache` since 5.24."""
    ids = torch.tensor([[3, 4, 5, 6]])
    whole = model(ids, use_cache=False).logits[:, -1]
    for name in ("past_key_values", "cache"):
        first = model(ids[:, :3], use_cache=True)
        rest = model(ids[:, 3:], **{name: first[CACHE]}).logits[:, -1]
        torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="two names of one thing"):
        model(
            ids[:, 3:],
            cache=first[CACHE],
            past_key_values=OuroborosCache(model.config.num_layers),
        )
