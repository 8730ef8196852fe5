"""How fast each part of a model learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ouroboros.model.modulation import FREE_FACTORS

if TYPE_CHECKING:
    from ouroboros.training.recipe import TrainOptions

# Of the learning rate, where none is given for the gate: a large matrix that reads states of up to
# thousands. At the rate of the others it makes deep read-outs worse (study/LOG.md).
GATE_RATE = 0.1
# What is trained of the original's own.
LAYERS = ("coda.", "recurrent.layers.", "norm.", "embed_tokens.", "lm_head.")
# Tables of a vector a step, no matrices: where they decayed, steps never trained would leave their
# start.
STEP_TABLES = (".step_embedding.weight", ".controller.vectors")


def highest_rate(name: str, options: TrainOptions) -> float:
    """Returns the learning rate that a parameter has after the warmup.

    Args:
        name: of the parameter, in the state dict.
        options: of the training.
    """
    if name.startswith("recurrent.gate."):
        return options.gate_learning_rate or GATE_RATE * options.learning_rate
    if name.startswith(LAYERS) and not name.endswith(FREE_FACTORS):
        return options.layer_learning_rate or options.learning_rate
    return options.learning_rate
