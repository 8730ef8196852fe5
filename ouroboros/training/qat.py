"""Training that looks ahead to integer weights: every matrix is used as it will be stored.

What trains is rounded on the way forward and taught through the rounding (the straight-through
estimator); what is frozen is rounded once. A weight that an adapter trains beside is rounded with
the adapter's product added. The floats themselves are what is published: rounded the same way at
export, they are the model that was trained.

Source: Bengio et al., arXiv 1308.3432; quantisation-aware training as in arXiv 1712.05877, of
low-rank updates as in arXiv 2406.06385.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ouroboros.errors import TrainingError
from ouroboros.model.integer_blocks import fitting_blocks
from ouroboros.model.matrices import matrices_to_round
from ouroboros.model.rounding import Rounding
from ouroboros.training.adapters import adapted_layers

if TYPE_CHECKING:
    from ouroboros.model.modeling import OuroborosForCausalLM
    from ouroboros.training.recipe import TrainOptions


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: torch.Tensor, rounding: Rounding) -> torch.Tensor:
        return rounding.nearest(weight)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class Rounded(nn.Module):
    """Gives a weight `[out, in]` its nearest integers' values, and the gradient of those to it."""

    def __init__(self, rounding: Rounding) -> None:
        """Rounds to `rounding`."""
        super().__init__()
        self.rounding = rounding

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns `[out, in]` float32."""
        rounded: torch.Tensor = _StraightThrough.apply(weight, self.rounding)
        return rounded


class RoundedBeside(nn.Module):
    """Gives a frozen weight such that it and its adapter's product make rounded values together.

    The adapter computes as ever and learns as if nothing were rounded: a gradient that goes
    straight through the rounding of their sum comes to that, and none of the matrix is needed.
    """

    def __init__(self, rounding: Rounding, adapted: Any) -> None:
        """Rounds to `rounding`, beside the adapter of a projection as PEFT adapts it."""
        super().__init__()
        self.rounding = rounding
        self._adapted = (adapted,)  # no child: the weight is its own

    @torch.no_grad()
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns `[out, in]` float32."""
        with torch.autocast(weight.device.type, enabled=False):
            product: torch.Tensor = self._adapted[0].get_delta_weight("default")
        return self.rounding.nearest(weight + product) - product


@dataclass
class RoundedModel:
    """A model while it is trained with rounded matrices; `restore` gives its floats back.

    Attributes:
        model: the student.
        rounding: of every matrix, embedding and LM head among them.
        trained: the layers whose weights are rounded anew at every use, since they or their
            adapters train; a tied table in both.
        frozen: the floats of those that were rounded once, by the parameter itself.
    """

    model: OuroborosForCausalLM
    rounding: Rounding
    trained: list[nn.Module]
    frozen: list[tuple[torch.Tensor, torch.Tensor]]

    @property
    def head(self) -> torch.Tensor:
        """The floats of the LM head `[vocab, hidden]`."""
        head: Any = self.model.lm_head
        if head in self.trained:
            original: torch.Tensor = head.parametrizations["weight"].original
            return original
        return next(floats for one, floats in self.frozen if one is head.weight)

    def restore(self) -> dict[str, Any]:
        """Puts back the floats, trained or not; returns what a config's `qat` says of it."""
        for layer in self.trained:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        with torch.no_grad():
            for parameter, floats in self.frozen:
                parameter.copy_(floats)
        return asdict(self.rounding)


def round_as_asked(model: OuroborosForCausalLM, options: TrainOptions) -> RoundedModel | None:
    """Rounds a model as a run's options say; None where they say nothing of it.

    Raises:
        TrainingError: as `round_model`.
    """
    if options.qat == "none":
        return None
    bits = int(options.qat.removeprefix("int"))
    return round_model(model, Rounding(bits, options.qat_block, options.qat_symmetric))


def round_model(model: OuroborosForCausalLM, rounding: Rounding) -> RoundedModel:
    """Rounds every matrix that an export at these bits stores as integers.

    Args:
        model: its trainable parameters are marked already, and it is where it will be trained.
        rounding: of all of them.

    Raises:
        TrainingError: the block size does not cut every matrix evenly.
    """
    beside = {layer.get_base_layer(): layer for _, layer in adapted_layers(model)}
    sides = {part for layer in beside.values() for part in layer.modules()} - beside.keys()
    linears = [one for _, one in matrices_to_round(model, "") if one not in sides]
    inputs = [linear.in_features for linear in linears]
    if odd := sorted({one for one in inputs if one % rounding.block}):
        allowed = fitting_blocks(inputs)
        raise TrainingError(
            f"qat_block={rounding.block} does not cut {odd[0]} inputs evenly",
            f"give one of {', '.join(map(str, allowed))}" if allowed else "train without --qat",
        )
    result = RoundedModel(model, rounding, [], [])
    layers: list[Any] = [*linears, model.embed_tokens, model.lm_head]
    # A tied head is the embedding.
    weights = {id(layer.weight): layer.weight for layer in layers if layer not in beside}
    for weight in [one for one in weights.values() if not one.requires_grad]:
        result.frozen.append((weight, weight.detach().clone()))
        with torch.no_grad():
            weight.copy_(rounding.nearest(weight))
    for layer in layers:
        if layer in beside:
            rounded: nn.Module = RoundedBeside(rounding, beside[layer])
        elif layer.weight.requires_grad:
            rounded = Rounded(rounding)
        else:
            continue
        parametrize.register_parametrization(layer, "weight", rounded)
        result.trained.append(layer)
    return result


@contextmanager
def rounded_once(model: nn.Module) -> Iterator[None]:
    """Within it a weight is rounded once only: not at every step of the loop.

    It is rounded at once. At its first use there may be no graph (a shallower read-out, the steps
    before the last ones), and what is kept of it then would bring the weight no gradient later.
    """
    with parametrize.cached():
        for module in model.modules():
            if parametrize.is_parametrized(module, "weight"):
                getattr(module, "weight")  # noqa: B009 (asked for, to be kept)
        yield
