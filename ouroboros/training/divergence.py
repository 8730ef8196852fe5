"""Where numbers stopped being numbers, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ouroboros.errors import TrainingError
from ouroboros.training.compiling import uncompiled
from ouroboros.training.sharded import whole


def divergence(what: str, train_step: int, learning_rate: float, origin: str = "") -> TrainingError:
    """Returns the error of a run that can't go on.

    Args:
        what: was found.
        train_step: in which; 0 is before the first.
        learning_rate: of the run.
        origin: what `find_origin` says.
    """
    began = f" (it began in {origin})" if origin else ""
    if train_step == 0:
        return TrainingError(f"{what} before any training{began}", "start from another checkpoint")
    return TrainingError(
        f"{what} at train step {train_step}{began}",
        f"start over in another folder with a --learning-rate below {learning_rate:g}",
    )


@torch.no_grad()
def find_origin(
    model: nn.Module, call: Callable[[], object], guide: torch.Tensor | None = None
) -> str:
    """Says which part of a model is the first to hold or to give NaN or infinity.

    Args:
        model: its parameters are looked at first, in their order, then what its modules give.
        call: runs it, as it was run when that was found.
        guide: what a teacher gave; looked at last, since a model is more often at fault.

    Returns:
        A parameter or a module by name; `the teacher`; or `the LM head` where all else is finite.
    """
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return f"the weight {name}"
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(map(_is_finite, _tensors(output))):
                found.append(f"the output of {name}")

        return note

    # A module is done after those in it: the first that is found is the innermost.
    handles = [m.register_forward_hook(look(name)) for name, m in model.named_modules() if name]
    try:
        with uncompiled():
            call()
    finally:
        for handle in handles:
            handle.remove()
    if not found and guide is not None and not _is_finite(guide):
        return "the teacher"
    return found[0] if found else "the LM head"


@torch.no_grad()
def spoilt_gradient(parameters: Mapping[str, nn.Parameter], last: str = "") -> str:
    """Says where on the way back gradients stopped being numbers; "" where all are numbers.

    What is no number in one part is none in all parts before it, so it began in the last one.

    Every process must call it, where parameters are pieces.

    Args:
        parameters: by name, in the order in which the model runs them.
        last: how the names of those begin that it runs behind the loop, though they stand before.
    """
    found = {name: one.grad for name, one in parameters.items() if one.grad is not None}
    # One look at all of them first, without a sum that could overflow.
    if math.isfinite(whole(nn.utils.get_total_norm(list(found.values()), math.inf))):
        return ""
    names = [name for name, gradient in found.items() if not _is_finite(whole(gradient))]
    behind = [name for name in names if name.startswith(("coda.", "norm.", "lm_head."))]
    moved = [name for name in names if last and name.startswith(last)]
    return f"the gradient of {[*names, *moved, *behind][-1]}"


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
