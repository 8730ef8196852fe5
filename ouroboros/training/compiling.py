"""Parts of a run as `torch.compile` makes them: each layer, the loop's step and the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from ouroboros.errors import TrainingError
from ouroboros.training.loss import PieceLoss, piece_loss

BACKEND = "inductor"
"""Of torch.compile."""


def compile_parts(model: Any, taught_by: Sequence[nn.Module]) -> PieceLoss:
    """Has the layers of a model and of its teacher compiled when they are first called.

    The loop is compiled a step at a time, twice at most: once for step 0, once for any step, so
    that a drawn depth compiles nothing anew.

    Args:
        model: an `OuroborosForCausalLM`, which is changed.
        taught_by: the teacher's layers.

    Returns:
        The loss of some positions, to be compiled as well.
    """
    layers = (*model.prelude, model.recurrent, *model.coda, *taught_by)
    # Past the limit nothing more is compiled. Layers that are alike share a graph, but of rounded
    # ones each has a class of its own; both run with and without gradients, a step also with and
    # without several documents in a window, as the first one and as another.
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 2 * len(layers), 16)
    for layer in layers:
        layer.compile(backend=BACKEND)
    compiled: PieceLoss = torch.compile(piece_loss, backend=BACKEND)
    return compiled


def uncompiled() -> AbstractContextManager[Any]:
    """Runs everything as it was written: hooks inside of what is compiled are not called."""
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


@contextmanager
def compile_errors() -> Iterator[None]:
    """Says what to do where something can't be compiled.

    Raises:
        TrainingError: PyTorch's compiler failed, or it lacks one of C++.
    """
    try:
        yield
    except RuntimeError as error:
        # Imported here: it takes a second, and who compiles has it already.
        from torch._dynamo.exc import BackendCompilerFailed

        if not isinstance(error, BackendCompilerFailed):
            raise
        why = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise TrainingError(
            f"the layers can't be compiled ({why:.300})",
            "leave --compile out, or install the compiler that it asks for; CXX names one of C++",
        ) from error
