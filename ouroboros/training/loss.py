"""Cross-entropy and distillation over the LM head, a few positions at a time.

The logits of a batch are by far its largest tensor, and their gradient is known in closed form:
nothing of them has to be kept for the backward pass but the gradient of the hidden state, which is
as small as the hidden state itself, and, where the head trains, that of the head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from ouroboros.model.pooling import widen
from ouroboros.text.windows import IGNORED as IGNORED

CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Logits held at once, by device: 32 MiB and 1 GiB in float32.

Larger blocks glibc gives back to the system at once, so that every page of the next is mapped anew;
with fewer positions a matrix product reads the head too often.
"""


PieceLoss = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class HeadLoss(torch.autograd.Function):
    """(1 - w) CE + w T² KL(teacher || student), summed over predicted positions.

    Source: Hinton et al., arXiv 1503.02531 (the T² that keeps both terms of one size).
    """

    @staticmethod
    def forward(
        context: Any,
        hidden: torch.Tensor,
        teacher: torch.Tensor | None,
        head: torch.Tensor,
        labels: torch.Tensor,
        weight: float,
        temperature: float,
        compute: PieceLoss,
        teacher_head: torch.Tensor | None,
    ) -> torch.Tensor:
        """Returns the sum, float32 `[]`; see `head_loss`."""
        device = hidden.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype
        # Once for all pieces.
        head, states = head.to(kind), hidden.to(kind)
        guides = None if teacher is None or weight == 0 else teacher.to(kind)
        teacher_head = None if teacher_head is None else teacher_head.to(kind)
        gradient = torch.empty_like(hidden)
        total = widen(hidden.new_zeros(()))
        taught = total.new_zeros(head.shape) if context.needs_input_grad[2] else None
        elements = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cpu"])
        step = max(1, elements // head.shape[0])
        for start in range(0, len(labels), step):
            piece = slice(start, start + step)
            guide = None if guides is None else guides[piece]
            loss, slope = compute(
                states[piece], guide, head, labels[piece], weight, temperature, teacher_head
            )
            total += loss
            # Here and not in the slope, which is as wide as the vocabulary.
            valid = (labels[piece] != IGNORED)[:, None]
            gradient[piece] = functional.linear(slope, head.T) * valid
            if taught is not None:
                taught += slope.T @ (states[piece] * valid)
        context.save_for_backward(gradient, taught)
        return total

    @staticmethod
    def backward(context: Any, *outputs: torch.Tensor) -> tuple[Any, ...]:
        """Scales the gradients found on the way forward."""
        gradient, taught = (
            None if found is None else found * outputs[0].to(found.dtype)
            for found in context.saved_tensors
        )
        return gradient, None, taught, None, None, None, None, None


def head_loss(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor | None = None,
    weight: float = 0.5,
    temperature: float = 1.0,
    compute: PieceLoss | None = None,
    teacher_head: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sums the loss of predicted tokens, float32 `[]`, without ever holding all logits.

    Args:
        hidden: the student's state before the LM head, `[positions, hidden]`.
        head: the LM head `[vocab, hidden]`; it gets a gradient where it requires one.
        labels: int64 `[positions]`, what each position predicts (shifted already); -100 ignored.
        teacher: the teacher's state before its head, `[positions, hidden]`; None: no KL.
        weight: of the KL term, 0..1; the cross-entropy has the rest. 0 where there is no teacher.
        temperature: both distributions of the KL term are softened by it.
        compute: `torch.compile(piece_loss)`; None for the plain one.
        teacher_head: the teacher's own `[vocab, hidden]`; None where it is `head`.
    """
    share = 0.0 if teacher is None else weight
    result: torch.Tensor = HeadLoss.apply(
        hidden,
        teacher,
        head,
        labels,
        share,
        temperature,
        compute or piece_loss,
        teacher_head,
    )
    return result


def piece_loss(
    hidden: torch.Tensor,
    teacher: torch.Tensor | None,
    head: torch.Tensor,
    labels: torch.Tensor,
    weight: float,
    temperature: float,
    teacher_head: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss `[]` of some positions, and its gradient to the logits `[positions, vocab]`.

    The gradient is of the heads' type, and wrong where a label is ignored.

    Arguments are those of `head_loss`, with a weight of 0 where there is no teacher, and with one
    only where there is; states and heads are of the type that logits are computed
    in. What is as wide as the vocabulary is changed in place.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        logits = widen(functional.linear(hidden, head))
        place = labels.clamp(min=0)[:, None]
        valid = (labels != IGNORED)[:, None]
        log_p = torch.log_softmax(logits, -1)
        loss = -(log_p.gather(1, place) * valid).sum() * (1 - weight)
        if teacher is None:
            slope = log_p.exp_()
        else:
            soft = torch.log_softmax(logits / temperature, -1) if temperature != 1 else log_p
            other = head if teacher_head is None else teacher_head
            guide = widen(functional.linear(teacher, other))
            wanted = torch.log_softmax(guide.div_(temperature) if temperature != 1 else guide, -1)
            q = wanted.exp()
            apart = (q[:, None] @ wanted.sub_(soft)[..., None])[:, 0]
            loss = loss + (apart * valid).sum() * (weight * temperature**2)
            # With one temperature both terms have the same p in their gradient.
            same = soft is log_p
            slope = soft.exp_() if same else soft.exp_().mul_(weight * temperature)
            slope.sub_(q, alpha=weight * temperature)
            if not same:
                slope.add_(log_p.exp_(), alpha=1 - weight)
        slope.scatter_add_(1, place, torch.full_like(place, weight - 1, dtype=slope.dtype))
        return loss, slope.to(head.dtype)
