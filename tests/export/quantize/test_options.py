"""What an export takes from the training for integer weights, and where it can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError
from export.options import ExportOptions
from export.quantize.options import as_trained

QAT = {"bits": 4, "block": 64, "symmetric": False}


def asked(**changes: Any) -> ExportOptions:
    return ExportOptions(**{"precision": "int4", **changes})


def test_what_is_left_out_is_as_trained() -> None:
    chosen = as_trained(asked(), QAT)
    assert (chosen.block_size, chosen.symmetric, chosen.sensitive_bits) == (64, False, 4)
    same = as_trained(asked(block_size=64, symmetric=False, sensitive_bits=8), QAT)
    assert (same.block_size, same.symmetric, same.sensitive_bits) == (64, False, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "int8"}, {"precision": "fp16"}, {"calibration": Path("text")},
        {"block_size": 32}, {"symmetric": True}, {"symmetric": True, "format": "trt"},
    ],
)  # fmt: skip
def test_other_integers_are_rounded_as_without_training(changes: dict[str, Any]) -> None:
    assert as_trained(asked(**changes), QAT) == asked(**changes)
    assert as_trained(asked(**changes), {}) == asked(**changes)


def test_tensorrt_can_not_round_as_an_asymmetric_training_did() -> None:
    with pytest.raises(
        ExportError, match=r"asymmetric int4, and TensorRT takes .*; train with --q"
    ):
        as_trained(asked(format="trt"), QAT)
    chosen = as_trained(asked(format="trt"), {**QAT, "symmetric": True})
    assert (chosen.block_size, chosen.symmetric, chosen.sensitive_bits) == (64, True, 4)
