"""The loss over the LM head, in pieces, against the plain one with all its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ouroboros.training import loss as losses
from ouroboros.training.loss import IGNORED, head_loss

POSITIONS, HIDDEN, VOCABULARY = 13, 6, 11


def plain(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor | None,
    weight: float,
    temperature: float,
    teacher_head: torch.Tensor,
) -> torch.Tensor:
    logits = hidden @ head.T
    loss = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    if teacher is None:
        return loss
    wanted = torch.softmax(teacher @ teacher_head.T / temperature, -1)
    own = torch.log_softmax(logits / temperature, -1)
    apart = (wanted * (wanted.log() - own)).sum(-1)[labels != IGNORED].sum()
    return (1 - weight) * loss + weight * temperature**2 * apart


@pytest.mark.parametrize("piece", [1, 4, POSITIONS, 100])
@pytest.mark.parametrize("ignored", [(), (0, 5, 12), tuple(range(POSITIONS))])
@pytest.mark.parametrize(
    ("teaching", "weight", "temperature"),
    [(False, 0.5, 1.0), (True, 0.5, 1.0), (True, 0.3, 2.0), (True, 1.0, 0.7), (True, 0.0, 4.0)],
)
def test_loss_and_gradient_are_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch,
    piece: int,
    ignored: tuple[int, ...],
    teaching: bool,
    weight: float,
    temperature: float,
) -> None:
    monkeypatch.setitem(losses.CHUNK_ELEMENTS, "cpu", piece * VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = torch.randn(2, POSITIONS, HIDDEN, generator=generator, dtype=torch.float64)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, VOCABULARY, (POSITIONS,), generator=generator)
    labels[list(ignored)] = IGNORED
    guide = teacher if teaching else None
    found, expected = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    taught = head.clone().requires_grad_(), head.clone().requires_grad_()
    actual = head_loss(found, taught[0], labels, guide, weight, temperature, teacher_head=head)
    wanted = plain(expected, taught[1], labels, guide, weight, temperature, head)
    # Scaled on the way back, as a mean over tokens is.
    (3 * actual).backward()
    (3 * wanted).backward()
    torch.testing.assert_close(actual.double(), wanted, rtol=1e-12, atol=1e-12)
    assert found.grad is not None
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(taught[0].grad, taught[1].grad, rtol=1e-11, atol=1e-12)
    assert (float(wanted.detach()) > 0) == (len(ignored) < POSITIONS)


def test_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, teacher = torch.randn(2, 4, HIDDEN, generator=generator, dtype=torch.float64)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    labels = torch.tensor([3, IGNORED, 0, 10])

    def loss(state: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        return head_loss(state, used, labels, teacher, 0.4, 1.5, teacher_head=head)

    own = (head + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), own))


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden = torch.randn(3, HIDDEN, requires_grad=True)
    head = torch.randn(VOCABULARY, HIDDEN)
    head_loss(hidden, head, torch.tensor([1, 2, 3])).backward()
    assert hidden.grad is not None
    assert head.grad is None


def test_logits_of_no_more_positions_than_a_piece_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither on the way forward nor on the way back."""
    piece, hidden_size = 4, 3  # the transposed head is as wide and has fewer rows than a piece
    monkeypatch.setitem(losses.CHUNK_ELEMENTS, "cpu", piece * VOCABULARY)

    class Widest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple | list) else [result]:
                if isinstance(one, torch.Tensor) and one.shape[-1:] == (VOCABULARY,):
                    self.rows = max(self.rows, one.numel() // VOCABULARY)
            return result

    hidden, teacher = torch.randn(2, POSITIONS, hidden_size)
    head, labels = torch.randn(VOCABULARY, hidden_size), torch.arange(POSITIONS) % VOCABULARY
    with Widest() as widest:
        head_loss(hidden.requires_grad_(), head, labels, teacher).backward()
    assert widest.rows == piece < POSITIONS
