"""Keeps what the tracer made, between tests, processes and runs of the tests.

The tracer takes seconds for each part, however small the model is, and gives the same graph for the
same part, code and packages.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from export.graph import trace
from runtime.files.hashing import hash_file
from tests.support.paths import ROOT

FOLDER = ROOT / "build" / "tests" / "traces"
# What a trace depends on beside the part itself: it is made anew where any of it changes.
CODE = ("export/graph", "export/precision.py", "ouroboros/model", "tests/support/traces.py")
PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers", "numpy")
KEPT = 3  # states of the code whose traces stay on disk

Trace = Callable[[nn.Module, tuple[Any, ...]], ir.Model]


@pytest.fixture(scope="session", autouse=True)
def traces_kept() -> Iterator[None]:
    """Traces each part once for a state of the code."""
    before = trace._trace
    keep_traces()
    yield
    trace._trace = before


def keep_traces() -> None:
    """From now on this process's tracer looks for its result in FOLDER."""
    trace._trace = keeping(trace._trace, open_folder(FOLDER))


def keeping(traced: Trace, folder: Path) -> Trace:
    """A tracer that looks for its result in `folder` first, and leaves it there."""
    seen: dict[str, ir.Model] = {}

    def trace_once(part: nn.Module, examples: tuple[Any, ...]) -> ir.Model:
        key = describe_part(part, examples)
        if key not in seen:
            file = folder / f"{key}.onnx"
            if not file.exists():
                # Another process may be at the same part: whoever is last leaves the same.
                part_of = file.with_suffix(f".{os.getpid()}")
                ir.save(traced(part, examples), part_of)
                part_of.replace(file)
            seen[key] = ir.load(file)
        return seen[key].clone()

    return trace_once


def open_folder(base: Path) -> Path:
    """The folder of this state of the code; the oldest others are removed."""
    folder = base / describe_code()
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    others = sorted(base.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in others[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def describe_code() -> str:
    """A hash of the sources and versions that a trace depends on."""
    digest = hashlib.sha256(repr([version(name) for name in PACKAGES]).encode())
    for name in CODE:
        files = sorted((ROOT / name).rglob("*.py")) or [ROOT / name]
        for file in files:
            digest.update(f"{file.relative_to(ROOT)}\0{hash_file(file)}\0".encode())
    return digest.hexdigest()[:16]


def describe_part(part: nn.Module, examples: tuple[Any, ...]) -> str:
    """A hash of all that a part's trace depends on."""
    digest = hashlib.sha256(repr(examples).encode())
    for name, module in part.named_modules():
        plain = {
            key: getattr(value, "__qualname__", value)
            for key, value in vars(module).items()
            if isinstance(value, int | float | str | tuple | torch.dtype | None) or callable(value)
        }
        digest.update(repr((name, type(module).__qualname__, sorted(plain.items()))).encode())
    for name, value in part.state_dict().items():
        digest.update(repr((name, value.dtype, value.shape)).encode())
        digest.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
