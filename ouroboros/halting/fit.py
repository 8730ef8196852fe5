"""Fits a halter to what was observed, and chooses its threshold.

A depth costs the loss of what follows, plus a price for each step. The halter gives every step i a
probability p_i of stopping there and not before, and the expected cost

    J = mean over prompts of  sum_i p_i (L_i + price * i),   p_i = q_i prod_{j<i} (1 - q_j)

is made small: more probability where the cost is low. Every L_i is known, of a model that stays as
it is, measured or on a line between two that are: nothing is sampled, and no prior keeps it
exploring. With a price of 0 it asks for the depth of the least loss; there is no term that could
reward steps or stops as such.

Source: PonderNet (arXiv 2107.05407, equation 14: expected loss, a price per step in the place of
its prior) and ACT (1603.08983, section 2.1: the ponder cost).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ouroboros.errors import TrainingError
from ouroboros.halting.observe import Observations, chosen_depths
from ouroboros.model.halting import Halter, halting_features

UPDATES, PATIENCE = 400, 60
LEARNING_RATE, WEIGHT_DECAY = 3e-4, 1.0
_BIAS_RATE = 3e-2  # a bias has one number a step and moves them all
THRESHOLDS = 64  # candidates


@dataclass(frozen=True)
class Choice:
    """What a halter does at a threshold, on prompts that it was not fitted to.

    Attributes:
        threshold: of the score.
        depth: mean of the depths it chooses.
        loss: mean loss of what follows, nats a token.
    """

    threshold: float
    depth: float
    loss: float

    def cost(self, price: float) -> float:
        """The loss, and the price of its steps."""
        return self.loss + price * self.depth


def stop_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Returns the probability of stopping at each step, `[N, D]`, from the logits of q `[N, D]`.

    The last step stops what is left.
    """
    kept = torch.sigmoid(-logits[:, :-1]).cumprod(1)
    before = torch.cat([torch.ones_like(logits[:, :1]), kept], dim=1)
    stops = torch.cat([torch.sigmoid(logits[:, :-1]), torch.ones_like(logits[:, :1])], dim=1)
    return before * stops


def expected_cost(logits: torch.Tensor, losses: torch.Tensor, price: float) -> torch.Tensor:
    """Returns J `[]` of the logits of q `[N, D]` and of losses `[N, D]`, nats."""
    steps = torch.arange(1, losses.shape[1] + 1, device=losses.device, dtype=losses.dtype)
    return (stop_probabilities(logits) * (losses + price * steps)).sum(1).mean()


def fit_halter(
    halter: Halter,
    seen: Observations,
    aside: Observations,
    price: float,
    updates: int = UPDATES,
) -> float:
    """Trains a halter's weights; the best on `aside` are kept.

    Args:
        halter: a trained one, from its start or from earlier weights.
        seen: what it is fitted to.
        aside: prompts of other windows.
        price: nats that a step must be worth.
        updates: at most.

    Returns:
        J on `aside`.

    Raises:
        TrainingError: J is no finite number.
    """
    inputs = [torch.stack([halting_features(r) for r in one.readings], 1) for one in (seen, aside)]
    bias = halter.bias.detach()[: seen.depth].clone().requires_grad_()
    weight = halter.weight.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight], "lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
            {"params": [bias], "lr": _BIAS_RATE, "weight_decay": 0.0},
        ]
    )
    best, kept, last = float("inf"), (weight, bias), 0
    for update in range(updates):
        with torch.no_grad():
            found = float(expected_cost(inputs[1] @ weight + bias, aside.losses, price))
        if found < best:
            best, last = found, update
            kept = (weight.detach().clone(), bias.detach().clone())
        elif update - last > PATIENCE:
            break
        cost = expected_cost(inputs[0] @ weight + bias, seen.losses, price)
        if not torch.isfinite(cost):
            raise TrainingError(
                f"the halter's cost is {float(cost.detach())} after {update} updates",
                "is a loss of the model not finite? `ouro eval` shows it",
            )
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    with torch.no_grad():
        halter.weight.copy_(kept[0])
        halter.bias.copy_(kept[1][-1].expand_as(halter.bias))
        halter.bias[: seen.depth] = kept[1]
    return best


@torch.no_grad()
def sweep(scores: torch.Tensor, losses: torch.Tensor) -> list[Choice]:
    """What a halter does at thresholds spread over the scores it gives, the lowest first.

    Args:
        scores: of `halting_scores`, `[N, D]`.
        losses: of the same prompts, `[N, D]`.
    """
    open_ended = scores[:, :-1].reshape(-1)  # after the last step there is nothing to decide
    candidates = [1.0]
    if len(open_ended):
        spread = torch.linspace(0, 1, THRESHOLDS, device=scores.device)
        candidates += torch.quantile(open_ended, spread).clamp(1e-6, 1.0).tolist()
    return [choose_at(scores, losses, threshold) for threshold in sorted(set(candidates))]


def choose_at(scores: torch.Tensor, losses: torch.Tensor, threshold: float) -> Choice:
    """What scores `[N, D]` choose at a threshold, with losses `[N, D]`."""
    depths = chosen_depths(scores, threshold)
    loss = losses.gather(1, depths[:, None] - 1).mean()
    return Choice(threshold, float(depths.float().mean()), float(loss))


def best_choice(choices: list[Choice], price: float) -> Choice:
    """The choice of the least cost; of equals the one of fewest steps."""
    return min(choices, key=lambda one: (one.cost(price), one.depth))
