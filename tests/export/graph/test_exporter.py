"""What is translated as it was traced, and what only once it is decomposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from export.graph import exporter
from export.graph.exporter import run_exporter
from export.options import OPSET

Compute = Callable[[torch.Tensor], torch.Tensor]
BEFORE = ExportedProgram.run_decompositions


def in_place(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y.add_(1.0)
    y[:, 0] = 0.5
    return y


def inside(x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.abs().sum() > 5, lambda x: x + 1, lambda x: x - 1, (x,))


AS_TRACED: dict[str, Compute] = {
    "and": lambda x: torch.where((x > -0.5) & (x < 0.5), x, 0.0),
    "one less": lambda x: 1.0 - x,
    "one less twice": lambda x: torch.rsub(x, 1.0, alpha=2.0),
    "another type": lambda x: (x.to(torch.float64) / 3).to(dtype=torch.float32),
    "its own type": lambda x: x.to(torch.float32, copy=True) + 1,
    "product": lambda x: torch.softmax(x @ x.mT, dim=-1),
}
DECOMPOSED: dict[str, Compute] = {
    "turned": lambda x: x.T * 2,
    "in place": in_place,
    "inside": inside,
}


class Part(nn.Module):
    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(x)


def traced(compute: Compute) -> ir.Model:
    varying = ({0: torch.export.Dim.AUTO},)
    return run_exporter(Part(compute), (torch.ones(3, 4),), varying, OPSET)


def assert_computes(model: ir.Model, compute: Compute) -> None:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (given,) = session.get_inputs()
    for rows in (1, 2, 5):
        x = torch.linspace(-1, 1, rows * 4).reshape(rows, 4)
        (found,) = session.run(None, {given.name: x.numpy()})
        np.testing.assert_allclose(found, compute(x).numpy(), rtol=1e-6, atol=1e-7)


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    """The programs that were decomposed."""
    programs = []

    def decompose(program: ExportedProgram, *rest: Any, **options: Any) -> ExportedProgram:
        programs.append(program)
        return BEFORE(program, *rest, **options)

    monkeypatch.setattr(exporter, "_decompose", decompose)
    return programs


@pytest.mark.parametrize("name", AS_TRACED)
def test_translated_as_traced(name: str, decomposed: list[ExportedProgram]) -> None:
    assert_computes(traced(AS_TRACED[name]), AS_TRACED[name])
    assert decomposed == []


@pytest.mark.parametrize("name", DECOMPOSED)
def test_decomposed_where_there_is_no_other_way(
    name: str, decomposed: list[ExportedProgram]
) -> None:
    assert_computes(traced(DECOMPOSED[name]), DECOMPOSED[name])
    assert len(decomposed) == 1


def test_what_can_not_be_traced_leaves_pytorch_as_it_was() -> None:
    with pytest.raises(Exception, match=r"[Dd]ata-dependent|[Cc]ould not guard"):
        traced(lambda x: x + 1 if x.sum() > 0 else x)
    traced(AS_TRACED["and"])
    assert ExportedProgram.run_decompositions is BEFORE
