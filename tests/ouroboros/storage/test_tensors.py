"""The writer of safetensors files: the library's own bytes, hashed meanwhile, a piece at a time."""

from __future__ import annotations

import hashlib
import io
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ouroboros.storage.tensors import KINDS, StoredTensor, pieces_of, write_tensors


def stored(name: str, value: torch.Tensor) -> StoredTensor:
    return StoredTensor(name, KINDS[value.dtype], tuple(value.shape), partial(pieces_of, value))


def test_bytes_are_those_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ouroboros.storage.tensors.PIECE", 7)
    torch.manual_seed(0)
    tensors = {
        "z.f32": torch.randn(5, 9),
        "a.f32": torch.randn(3),
        "b.bf16": torch.randn(4, 6).bfloat16(),
        "a.f16": torch.randn(11).half(),
        "long.f64": torch.randn(2, 2, 2).double(),
        'quoted " \\ and ö': torch.randn(1),
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 3).bfloat16(),
        "nan": torch.tensor([float("nan"), float("-inf"), 1e-45]),
    }
    save_file(tensors, tmp_path / "expected", metadata={"format": "pt"})
    with (tmp_path / "found").open("wb") as file:
        digest = write_tensors(file, [stored(*item) for item in tensors.items()])
    assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()
    assert digest == hashlib.sha256((tmp_path / "expected").read_bytes()).hexdigest()


def test_what_does_not_lie_in_a_row_is_written_in_order(tmp_path: Path) -> None:
    value = torch.arange(12.0).reshape(3, 4)
    sinks = io.BytesIO(), io.BytesIO()
    write_tensors(sinks[0], [stored("w", value.T)])
    write_tensors(sinks[1], [stored("w", value.T.contiguous())])
    assert sinks[0].getvalue() == sinks[1].getvalue()


@pytest.mark.parametrize("numbers", [5, 7])
def test_numbers_that_do_not_fill_the_shape_are_refused(numbers: int) -> None:
    tensor = StoredTensor("w", "F32", (2, 3), lambda: [torch.zeros(numbers)])
    with pytest.raises(ValueError, match=rf"w: {4 * numbers} bytes came, its shape says 24"):
        write_tensors(io.BytesIO(), [tensor])
