"""How far numbers are from their reference: the figures of the parity report."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Errors of one tensor against its reference, over the entries that are compared.

    relative_l2 is of the whole tensor; cosine likewise. `finite` is false where either side holds
    a NaN or an infinity; every error is then infinite.
    """

    max_abs: float
    mean_abs: float
    relative_l2: float
    cosine: float
    finite: bool


@dataclasses.dataclass(frozen=True)
class LogitDifference:
    """What logits add to a Difference, one entry a compared position.

    relative_l2: float64 [n].
    kl: float64 [n], in nats, of the reference to the other.
    agrees: bool [n], the best token is the same.
    margin: float64 [n], between the reference's two best logits.
    """

    relative_l2: Array
    kl: Array
    agrees: Array
    margin: Array


INFINITE = Difference(float("inf"), float("inf"), float("inf"), 0.0, False)


def compare(reference: Array, actual: Array, valid: Array | None = None) -> Difference:
    """Compares two tensors of one shape.

    Args:
        reference: the expected values.
        actual: the values to judge.
        valid: boolean, broadcastable to the tensors; False entries are not compared.
    """
    expected, found = reference.astype(np.float64), actual.astype(np.float64)
    if valid is not None:
        chosen = np.broadcast_to(valid, expected.shape)
        expected, found = expected[chosen], found[chosen]
    expected, found = expected.ravel(), found.ravel()
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return INFINITE
    error = np.abs(found - expected)
    scale, other = float(np.linalg.norm(expected)), float(np.linalg.norm(found))
    distance = float(np.linalg.norm(error))
    cosine = float(expected @ found) / (scale * other) if scale and other else float(distance == 0)
    return Difference(
        max_abs=float(error.max(initial=0.0)),
        mean_abs=float(error.mean()) if error.size else 0.0,
        relative_l2=_ratio(distance, scale),
        cosine=cosine,
        finite=True,
    )


def compare_logits(reference: Array, actual: Array) -> LogitDifference:
    """Compares finite logits position by position.

    Args:
        reference: float [n, V].
        actual: float [n, V].
    """
    expected, found = reference.astype(np.float64), actual.astype(np.float64)
    distance = np.linalg.norm(found - expected, axis=1)
    scale = np.linalg.norm(expected, axis=1)
    relative = np.array([_ratio(a, b) for a, b in zip(distance, scale, strict=True)])
    log_p, log_q = log_softmax(expected), log_softmax(found)
    kl = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)
    best = np.sort(np.partition(expected, -2, axis=1)[:, -2:], axis=1)
    return LogitDifference(
        relative_l2=relative,
        kl=kl,
        agrees=expected.argmax(axis=1) == found.argmax(axis=1),
        margin=best[:, 1] - best[:, 0],
    )


def log_softmax(logits: Array) -> Array:
    """Log-probabilities over the last axis, in the array's own float type."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _ratio(distance: float, scale: float) -> float:
    if distance == 0:
        return 0.0
    return distance / scale if scale else float("inf")
