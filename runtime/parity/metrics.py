"""How far numbers are from their reference: the figures of the parity report."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_FLOOR = 0.01  # of the median channel's norm
_SMALLEST = 1e-6  # of the mean channel's energy, where most channels are zero


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


def compare_arrays(reference: Array, actual: Array, valid: Array | None = None) -> Difference:
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


def channel_error(reference: Array, actual: Array, valid: Array | None = None) -> float:
    """The root mean square, over channels, of each channel's relative L2 error.

    A few channels of real models are a thousand times as large as the others (massive activations,
    key biases). In the norm of a whole tensor they are all that counts: an error in the rest would
    not be seen. A channel below a hundredth of the median one is measured by that.

    Args:
        reference: pooled sums `[B, D, K, d]`, a channel each of d; or keys or values
            `[B, D, kv, S, hd]`, a channel each of kv x hd.
        actual: float, of the same shape.
        valid: as for `compare_arrays`.
    """
    expected, error = reference.astype(np.float64), actual.astype(np.float64)
    error -= expected
    if valid is not None:
        chosen = np.broadcast_to(valid, expected.shape)
        expected, error = np.where(chosen, expected, 0.0), np.where(chosen, error, 0.0)
    others = (0, 1, 3) if expected.ndim == 5 else tuple(range(expected.ndim - 1))
    scale, distance = np.square(expected).sum(axis=others), np.square(error).sum(axis=others)
    if not distance.any():
        return 0.0
    floor = max(float(np.median(scale)), float(scale.mean()) * _SMALLEST) * _FLOOR**2
    if not floor:
        return float("inf")
    return float(np.sqrt((distance / np.maximum(scale, floor)).mean()))


def log_softmax(logits: Array) -> Array:
    """Log-probabilities over the last axis, in the array's own float type."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _ratio(distance: float, scale: float) -> float:
    if distance == 0:
        return 0.0
    return distance / scale if scale else float("inf")
