"""Traces are kept for the same part of the same code, and for nothing else."""

from __future__ import annotations

import copy
import enum
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from export.graph.trace import _Example, _trace
from tests.support import traces
from tests.support.paths import ROOT

EXAMPLES = (_Example((2, 3), (0,)),)
WIDE = (_Example((2, 20), (0,)),)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Any) -> Any:
        return self.linear(x) * self.factor


def test_a_part_is_traced_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def trace(part: nn.Module, examples: tuple[Any, ...]) -> ir.Model:
        calls.append(type(part).__name__)
        return _trace(part, examples)

    part = Scaled(2.0)
    first = traces.keeping(trace, tmp_path)(part, EXAMPLES)
    # Another process, for which only the folder is the same.
    again = traces.keeping(trace, tmp_path)
    second = again(part, EXAMPLES)
    assert calls == ["Scaled"]
    assert ir.to_proto(first) == ir.to_proto(second)
    second.graph.name = "changed"
    assert again(part, EXAMPLES).graph.name == first.graph.name

    again(Scaled(2.0), EXAMPLES)  # other weights
    part.factor = 3.0
    again(part, EXAMPLES)
    again(part, (_Example((2, 3), (0, 1)),))
    assert len(calls) == 4


class Pair(nn.Module):
    """Two maps, the second times a number: the tracer computes that product."""

    def __init__(self, factor: float | None = None) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(20, 20), nn.Linear(20, 20)
        self.factor = factor

    def forward(self, x: Any) -> Any:
        weight = self.two.weight
        return self.one(x) @ (weight if self.factor is None else weight * self.factor)


def test_a_trace_of_other_weights_will_do_where_nothing_was_made_of_them(tmp_path: Path) -> None:
    calls: list[str] = []

    def trace(part: nn.Module, examples: tuple[Any, ...]) -> ir.Model:
        calls.append(type(part).__name__)
        return _trace(part, examples)

    def keep(part: nn.Module) -> ir.Model:  # as another process would
        return traces.keeping(trace, tmp_path)(part, WIDE)

    keep(Pair())
    other = Pair()
    assert ir.to_proto(keep(other)) == ir.to_proto(_trace(other, WIDE))
    assert len(calls) == 1
    with torch.no_grad():
        other.two.weight.copy_(other.one.weight)  # the tracer keeps one of two that are equal
        keep(other)
        assert len(calls) == 2
        other.two.weight.fill_(1.0)
        keep(other)
        assert len(calls) == 3
    for _ in range(2):
        keep(Pair(3.0))
    assert len(calls) == 5


def test_other_code_or_packages_have_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = traces.describe_code()
    assert first == traces.describe_code()
    monkeypatch.setattr(traces, "version", lambda name: "another")
    assert traces.describe_code() != first
    monkeypatch.undo()
    monkeypatch.setattr(traces, "CODE", (*traces.CODE, "export.tokens"))
    assert traces.describe_code() != first


def test_code_is_what_the_tracer_imports_and_no_more() -> None:
    found = {file.relative_to(ROOT).as_posix() for file in traces.files_of(traces.CODE)}
    imported = ("export/layout.py", "export/precision.py", "runtime/bundle/contract.py")
    own = ("export/graph/trace.py", "ouroboros/model/modeling.py", "tests/support/traces.py")
    assert found >= {*imported, *own}
    assert not found & {"export/graph/stitch.py", "export/tokens.py"}


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


@dataclass
class Setting:
    factors: list[float]


def other(x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("value", "changed"),
    [
        ([1.0, 2.0], [1.0, 3.0]),
        ((1, [2]), (1, [3])),
        ([1], (1,)),
        ({"a": 1}, {"a": 2}),
        ({"a", "b"}, {"a", "c"}),
        (Setting([1.0]), Setting([2.0])),
        (Kind.ONE, Kind.TWO),
        (1, True),
        (None, 0),
        (torch.float16, torch.float32),
        (torch.relu, other),
        (torch.ones(40), torch.zeros(40)),
    ],
)
def test_attributes_are_described_by_content(value: Any, changed: Any) -> None:
    part = Scaled(2.0)

    def described(attribute: Any) -> str:
        part.factor = attribute
        return traces.describe_part(part, EXAMPLES, weights=False)

    assert described(value) == described(copy.deepcopy(value))
    assert described(value) != described(changed)


def holding(value: Any) -> Any:
    return lambda: value  # others of its name hold other values


@pytest.mark.parametrize("value", [object(), [object()], iter(()), holding(1)])
def test_attributes_that_cannot_be_described_are_refused(value: Any) -> None:
    part = Scaled(2.0)
    part.factor = value
    with pytest.raises(TypeError, match="the attribute factor is a"):
        traces.describe_part(part, EXAMPLES)


def test_buffers_that_are_not_saved_are_described_by_content() -> None:
    part = Scaled(2.0)
    part.register_buffer("table", torch.arange(40.0), persistent=False)
    first = traces.describe_part(part, EXAMPLES, weights=False)
    part.table[3] = 7.0
    assert traces.describe_part(part, EXAMPLES, weights=False) != first


def test_old_folders_are_removed(tmp_path: Path) -> None:
    for age in range(5):
        folder = tmp_path / f"old-{age}"
        folder.mkdir()
        os.utime(folder, (1000 - age, 1000 - age))
    opened = traces.open_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(
        [opened, *(tmp_path / f"old-{age}" for age in range(traces.KEPT - 1))]
    )
