"""What a run does so that depth pays: how deep a train step goes, and what depth is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from ouroboros.model.pooling import widen
from ouroboros.text.windows import IGNORED
from ouroboros.training.loss import head_loss

if TYPE_CHECKING:
    from ouroboros.training.recipe import TrainOptions

# Keep the streams of random numbers drawn from one seed apart; the order of the windows has 2.
_DEPTH_STREAM, _SHALLOW_STREAM = 1, 3


@dataclass(frozen=True)
class DrawnDepth:
    """How deep a train step goes.

    Attributes:
        depth: that it trains.
        shallow: whose read-out the deeper one is held against; None where there is none.
    """

    depth: int
    shallow: int | None


def draw_depth(seed: int, train_step: int, low: int, high: int, draw: str = "uniform") -> int:
    """Draws the depth of a train step from low..high.

    It depends on nothing but the arguments, so every process, every micro-batch and a resumed run
    draw the same.

    Args:
        seed: of the run.
        train_step: its number.
        low: the least depth.
        high: the greatest depth.
        draw: `uniform`, or `inverse`: a depth d as often as 1 / d, so that deep steps are trained
            without being paid for at every train step.
    """
    generator = np.random.default_rng([_DEPTH_STREAM, seed, train_step])
    if draw == "uniform":
        return int(generator.integers(low, high + 1))
    return int(generator.choice(np.arange(low, high + 1), p=depth_chances(low, high, draw)))


def depth_chances(low: int, high: int, draw: str) -> np.ndarray:
    """Returns how likely `draw_depth` is to draw each depth of low..high, float64 [depths]."""
    depths = np.arange(low, high + 1)
    weights = 1 / depths if draw == "inverse" else np.ones(len(depths))
    chances: np.ndarray = weights / weights.sum()
    return chances


def greatest_depth(options: TrainOptions, train_step: int) -> int:
    """Returns the greatest depth that a train step may draw: with a curriculum it grows evenly.

    It is the least of the range at train step 0 and the greatest from `depth_curriculum` on.

    Source: McLeish et al., Teaching pretrained language models to think deeper with retrofitted
    recurrence, arXiv 2511.07384 (a depth curriculum).
    """
    low, high = options.depth_range
    if train_step >= options.depth_curriculum:
        return high
    return low + (high - low) * train_step // options.depth_curriculum


def draw_train_step(options: TrainOptions, train_step: int) -> DrawnDepth:
    """Draws how deep a train step goes; like `draw_depth`, from the arguments alone."""
    low, high = options.depth_range[0], greatest_depth(options, train_step)
    depth = draw_depth(options.seed, train_step, low, high, options.depth_draw)
    if not options.depth_term or depth == low:
        return DrawnDepth(depth, None)
    generator = np.random.default_rng([_SHALLOW_STREAM, options.seed, train_step])
    return DrawnDepth(depth, int(generator.integers(low, depth)))


@torch.no_grad()
def read_shallow(model: Any, inputs: dict[str, Any], drawn: DrawnDepth) -> torch.Tensor | None:
    """Returns what enters the LM head at the shallower depth, `[batch, seq, hidden]`.

    No gradient goes back from it. None where the train step has none.

    Args:
        model: as the trainer has it.
        inputs: of its forward call, without labels and depth.
        drawn: of the train step.
    """
    if drawn.shallow is None:
        return None
    output = model(**inputs, depth=drawn.shallow)
    # Under FSDP autocast stands around this call and the next: that is not to use weights which
    # were cast here, without a graph.
    torch.clear_autocast_cache()
    state: torch.Tensor = output.hidden_states[-1]
    return state


def depth_loss(
    deep: torch.Tensor, shallow: torch.Tensor, head: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Sums SiLU(CE_deep - CE_shallow) over predicted positions, float32 `[]`.

    It asks the deeper read-out to be no worse than the shallower one, at every position: what is
    worse there weighs most, what is much better weighs nothing. The shallower one is taken as it
    is: gradients reach `deep` alone.

    Source: the monotonicity loss of LoopUS, arXiv 2605.11011; here position by position, since of
    two means it would only scale the gradient of the cross-entropy.

    Args:
        deep: the state before the LM head, `[positions, hidden]`.
        shallow: the same at a lesser depth.
        head: the LM head `[vocab, hidden]`.
        labels: int64 `[positions]`, what each predicts; -100 ignored.
    """
    return head_loss(deep, head, labels, shallow.detach(), compute=_depth_piece)


def _depth_piece(
    hidden: torch.Tensor,
    shallow: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    *of_distilling: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The term of some positions and its logits' gradient, as `piece_loss` has them."""
    place = labels.clamp(min=0)[:, None]
    with torch.autocast(hidden.device.type, enabled=False):
        log_p, other = (
            torch.log_softmax(widen(functional.linear(state, head)), -1)
            for state in (hidden, shallow)
        )
        worse = other.gather(1, place) - log_p.gather(1, place)
        valid = (labels != IGNORED)[:, None]
        rise = torch.sigmoid(worse)
        # Of x sigmoid(x); and of the cross-entropy: p less one at the label.
        slope = log_p.exp()
        slope.scatter_add_(1, place, torch.full_like(place, -1, dtype=slope.dtype))
        slope = slope * (rise * (1 + worse * (1 - rise)))
        return (functional.silu(worse) * valid).sum(), slope.to(head.dtype)
