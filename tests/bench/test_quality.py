"""Quality on held-out text: figures of made-up logits whose loss and KL are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.quality import measure_quality
from cli.errors import CommandError

WINDOWS = np.array([[0, 1, 1, 0], [1, 1, 0, 0]])
P, Q = np.array([0.75, 0.25]), np.array([0.25, 0.75])


def constant(share: Any) -> Any:
    return lambda ids, depth: np.log(np.broadcast_to(share, (len(ids), 2)))


def test_loss_kl_and_agreement_of_known_distributions() -> None:
    shown: list[Any] = []
    rows = measure_quality(constant(P), {"other": constant(Q)}, WINDOWS, [3], shown.append)
    assert rows == shown
    same, other = rows
    assert (same.subject, same.depth, same.kl, same.agreement) == ("PyTorch", 3, 0, 1)
    labels = WINDOWS[:, 1:].ravel()
    assert same.loss == pytest.approx(-np.log(P[labels]).mean())
    assert other.perplexity == pytest.approx(np.exp(-np.log(Q[labels]).mean()))
    assert other.kl == pytest.approx((P * np.log(P / Q)).sum())
    assert other.agreement == 0


def test_logits_that_are_no_numbers_are_refused() -> None:
    broken = {"int4 level 4": constant([0.5, np.nan])}
    with pytest.raises(CommandError, match="int4 level 4 at depth 1, window 0: NaN or infinity"):
        measure_quality(constant(P), broken, WINDOWS, [1], lambda row: None)
