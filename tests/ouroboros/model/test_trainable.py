"""What trains of a model, by the choices that a run names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ouroboros.errors import ConfigError
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.model.trainable import CODA_CHOICES, RECURRENT_CHOICES
from tests.support.training import tiny_model

OWN = ("recurrent.controller.", "recurrent.gate.", "recurrent.norm.")


def expected(model: Any, coda: str, recurrent: str) -> set[str]:
    names = set()
    for name, _ in model.named_parameters():
        of_coda = name.startswith("coda.") and (coda == "full" or "norm" in name)
        looped = name.startswith("recurrent.layers.") and recurrent != "frozen"
        if (
            name.startswith((*OWN, "bridge."))
            or (looped and (recurrent == "full" or "norm" in name))
            or (coda != "frozen" and (of_coda or name == "norm.weight"))
        ):
            names.add(name)
    return names


@pytest.mark.parametrize("bridge", ["none", "entry", "exit"])
@pytest.mark.parametrize("recurrent", RECURRENT_CHOICES)
@pytest.mark.parametrize("coda", CODA_CHOICES)
def test_choices_name_what_trains(coda: str, recurrent: str, bridge: str) -> None:
    model = tiny_model(bridge=bridge)
    model.mark_trainable("full", "full")  # nothing of an earlier choice is left
    model.mark_trainable(coda, recurrent)
    names = set(model.trainable_names())
    assert names == expected(model, coda, recurrent)
    assert ("bridge.weight" in names) == (bridge != "none")
    assert not any(name.startswith(("prelude.", "embed_tokens.", "lm_head.")) for name in names)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_train_where_asked(tied: bool) -> None:
    model = tiny_model()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.mark_trainable(embedding="full")
    tables = {"embed_tokens.weight"} if tied else {"embed_tokens.weight", "lm_head.weight"}
    assert set(model.trainable_names()) == expected(model, "frozen", "frozen") | tables
    model.mark_trainable()
    assert not tables & set(model.trainable_names())


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"embedding": "norms"}, "embedding='norms' is unknown; choose one of frozen, full"),
        ({"coda": "half"}, "coda='half' is unknown; choose one of frozen, norms, lora, full"),
        ({"recurrent": "norms"}, "recurrent='norms' is unknown; choose one of frozen, lora, full"),
    ],
)
def test_unknown_choices_are_refused(choice: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_model().mark_trainable(**choice)


@pytest.mark.parametrize("recurrent", RECURRENT_CHOICES)
def test_free_updates_train_whatever_of_their_layer_does(recurrent: str) -> None:
    model = tiny_model(modulation="free")
    model.mark_trainable("frozen", recurrent)
    names = [name for name in model.trainable_names() if ".lora_" in name]
    assert len(names) == 7 * 2
    assert not any(name.startswith("recurrent.controller.") for name in model.trainable_names())


def test_free_updates_add_nothing_at_first_and_are_one_a_step() -> None:
    config = tiny_model(modulation="free", rank=2).config
    model = OuroborosForCausalLM(config)
    for one in model.recurrent.projections()[0].values():
        steps = model.config.max_depth
        assert one.lora_a.shape == (steps, 2, one.in_features)
        assert one.lora_b.shape == (steps, one.out_features, 2)
        assert not one.lora_b.any()
        # Uniform within one over the square root of what enters, as PEFT starts its own.
        assert 0.8 * one.in_features**-0.5 < one.lora_a.abs().max() <= one.in_features**-0.5


def test_bases_a_step_are_refused_of_what_has_none() -> None:
    for modulation in ("free", "none"):
        words = f"bases=per_step is of frozen bases, and modulation={modulation} has none"
        with pytest.raises(ConfigError, match=words):
            tiny_model(modulation=modulation, bases="per_step")
