"""What a graph pass reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class PassResult:
    """What one pass did to a model, which it changed in place.

    Attributes:
        name: of the pass.
        changed: how many nodes or weights it changed or removed; 0 where there was nothing to do.
        note: what was changed, in a few words.
    """

    name: str
    changed: int
    note: str


Pass = Callable[[ir.Model], PassResult]
