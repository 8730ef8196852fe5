"""Low-rank adapters on what is kept of the original: trained beside it, merged before publishing.

PEFT wraps the projections and computes with them; what is published has none of it in it.

Source: Hu et al., LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from ouroboros.errors import ConfigError
from ouroboros.model.configuration import PROJECTIONS
from ouroboros.storage.adapters import Update, add_updates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ouroboros.model.modeling import OuroborosForCausalLM
    from ouroboros.training.recipe import TrainOptions

_PLACES = {"coda": r"coda\.\d+", "recurrent": r"recurrent\.layers\.\d+"}


class Adapters:
    """Adapters on the seven projections of coda layers, of looped ones, or of both.

    A projection computes W x + (alpha / rank) B (A x). B starts at zero, so that the model starts
    as it was.
    """

    def __init__(
        self,
        model: OuroborosForCausalLM,
        places: tuple[str, ...],
        rank: int,
        alpha: float,
        seed: int,
    ) -> None:
        """Puts adapters into a model, which is changed, and freezes all else of it.

        Args:
            model: to be adapted; `mark_trainable` says afterwards what trains.
            places: `coda`, `recurrent` or both.
            rank: of each.
            alpha: their scale is alpha / rank.
            seed: what A starts as derives from it and from nothing else.

        Raises:
            ConfigError: the rank is above the smallest side of a projection, or there are no such
                layers.
        """
        from peft import LoraConfig, LoraModel

        pattern = f"({'|'.join(_PLACES[place] for place in places)})"
        pattern += rf"\..*\.({'|'.join(PROJECTIONS)})"
        found = [one for name, one in model.named_modules() if re.fullmatch(pattern, name)]
        if not found:
            raise ConfigError(
                f"there is no layer for adapters of {' and '.join(places)}", "leave them out"
            )
        smallest = min(min(one.get_parameter("weight").shape) for one in found)
        if rank > smallest:
            raise ConfigError(
                f"adapter rank {rank} is above {smallest}, the smallest side of a projection",
                f"give --adapter-rank {smallest} or less",
            )
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._tuner: Any = LoraModel(model, config, "default")

    def merge(self) -> dict[str, Update]:
        """Adds the adapters to the weights and takes them out of the model.

        The sum is that of `ouroboros.storage.adapters.add_updates`, which a delta repeats.

        Returns:
            What was added to each weight, by its name in the model without adapters; float32.
        """
        updates: dict[str, Update] = {}
        for name, module in adapted_layers(self._tuner.model):
            a, b = (side["default"].weight.detach() for side in (module.lora_A, module.lora_B))
            update = Update(a.float().cpu(), (b.float() * module.scaling["default"]).cpu())
            weight = module.get_base_layer().weight
            with torch.no_grad():
                weight.copy_(add_updates(weight, [update]))
            updates[f"{name}.weight"] = update
        self._tuner.unload()
        return updates


def adapted_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The projections that have adapters, by name, as PEFT wraps them."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            yield name, module


def mark_trained(model: OuroborosForCausalLM, options: TrainOptions) -> Adapters | None:
    """Marks what a run trains, and puts adapters into the model where it trains some.

    Raises:
        ConfigError: as `Adapters`, nothing trains, a choice or a rate is of what the model lacks,
            or the embedding is to train and gets no gradient at any depth.
    """
    adapters = None
    if options.adapted:
        adapters = Adapters(
            model, options.adapted, options.adapter_rank, options.adapter_alpha, options.seed
        )
    if options.train_recurrent != "frozen" and not model.recurrent.layers:
        raise ConfigError(
            f"train_recurrent={options.train_recurrent} is of looped layers, and this model loops "
            "none",
            "leave it out",
        )
    model.mark_trainable(options.train_coda, options.train_recurrent, options.train_embedding)
    if not model.trainable_names():
        raise ConfigError("nothing of this model trains", "give --train-coda, say lora")
    if options.gate_learning_rate and model.recurrent.gate is None:
        raise ConfigError(
            f"gate_learning_rate={options.gate_learning_rate} is of a gate, and this model has "
            "none",
            "leave it out",
        )
    _check_embedding(model, options)
    return adapters


def _check_embedding(model: OuroborosForCausalLM, options: TrainOptions) -> None:
    """Refuses an embedding that trains behind steps through which no gradient goes back.

    A tied one has the LM head's gradient, and with injection each step has the entry's.
    """
    steps, least = options.backprop_steps, options.depth_range[0]
    apart = not model.config.tie_word_embeddings and model.recurrent.injection is None
    if options.train_embedding != "frozen" and 0 < steps < least and apart:
        raise ConfigError(
            f"train_embedding={options.train_embedding} trains an embedding apart from the LM "
            f"head, and with backprop_steps={steps} no depth from {least} on gives it a gradient",
            f"give --backprop-steps {least} or more, draw lesser depths too, or leave one of the "
            "two out",
        )


def gather_updates(
    earlier: Mapping[str, Sequence[Update]],
    model: OuroborosForCausalLM,
    adapters: Adapters | None,
) -> dict[str, list[Update]]:
    """Merges a run's adapters, and returns all updates of the weights as they are then.

    Args:
        earlier: those that the weights held when the run began.
        model: the trained model, which is changed.
        adapters: its own, None where it has none.
    """
    merged = adapters.merge() if adapters else {}
    changed = set(model.trainable_names())
    gathered = {name: list(ones) for name, ones in earlier.items() if name not in changed}
    for weight, update in merged.items():
        gathered.setdefault(weight, []).append(update)
    return gathered
