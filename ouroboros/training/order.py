"""In which order a run draws its windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from ouroboros.training.recipe import TrainOptions

# Keeps the streams of random numbers drawn from one seed apart; `depth` has 1 and 3.
_ORDER_STREAM = 2


class RunOrder(Sampler[int]):
    """The windows of a whole run in order: one shuffled pass after the other.

    One sampler for the whole run, so that a run is one epoch and skips to any train step.
    """

    def __init__(self, windows: int, total: int, seed: int) -> None:
        """Orders `total` draws from `windows` windows."""
        self.windows, self.total, self.seed = windows, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self.total, self.windows):
            generator = np.random.default_rng([_ORDER_STREAM, self.seed, start // self.windows])
            order = generator.permutation(self.windows)[: self.total - start]
            yield from order.tolist()


def run_order(options: TrainOptions, windows: int, world_size: int) -> RunOrder:
    """Returns the order of a run over `windows` windows in `world_size` processes."""
    a_step = options.batch_size * options.grad_accum * world_size
    return RunOrder(windows, options.train_steps * a_step, options.seed)
