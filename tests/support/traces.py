"""Keeps what the tracer made, between tests, processes and runs of the tests.

The tracer takes seconds for each part, however small the model is, and gives the same graph for the
same part, code and packages.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import os
import shutil
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import onnx_ir as ir
import pytest
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.graph import exporter, trace
from runtime.files.hashing import hash_file
from tests.support.imports import files_of
from tests.support.paths import ROOT

FOLDER = ROOT / "build" / "tests" / "traces"
# What a trace depends on beside the part itself: it is made anew where any of it changes.
CODE = ("export.graph.trace", "tests.support.traces")  # with all of ours that they import
PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers", "numpy")
KEPT = 3  # states of the code whose traces stay on disk
INTERNAL = set(vars(nn.Module())) - {"training"}  # tensors and modules are described by themselves
# Attributes whose `repr` is their content.
PLAIN = bool | int | float | str | bytes | enum.Enum | torch.dtype | torch.device | None
NAMED = type | types.FunctionType | types.BuiltinFunctionType
SMALL = 16  # numbers of a tensor; the least matrix of a test's model has more

Trace = Callable[[nn.Module, tuple[Any, ...]], ir.Model]


def keep_traces() -> None:
    """From now on this process's tracer looks for its result in FOLDER."""
    trace._trace = keeping(trace._trace, open_folder(FOLDER))
    ONNXRegistry.from_torchlib = staticmethod(operators())


@functools.cache
def operators() -> Callable[..., Any]:
    """PyTorch's table of ONNX operators, read once a process.

    The tracer reads it anew for every part, in a third of a second, of the two that a small part
    takes, and changes nothing in it.
    """
    return functools.cache(ONNXRegistry.from_torchlib)


def keeping(traced: Trace, folder: Path) -> Trace:
    """A tracer that looks for its result in `folder` first, and leaves it there.

    What it made of a part of other weights will do where it made nothing of them: then it is the
    same but for the weights, which are put in.
    """
    seen: dict[str, ir.Model] = {}

    def read(key: str) -> ir.Model | None:
        if key not in seen and (file := folder / f"{key}.onnx").exists():
            seen[key] = ir.load(file)
        return seen[key].clone() if key in seen else None

    def trace_once(part: nn.Module, examples: tuple[Any, ...]) -> ir.Model:
        part.eval()  # as the tracer does; it is part of the description
        alike, same = (describe_part(part, examples, weights) for weights in (False, True))
        if (found := read(alike)) is not None:
            return put_weights(found, part)
        if (found := read(same)) is not None:
            return found
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporter, "_decompose", refuse)
            model = traced(part, examples)
        key = alike if keeps_weights(model, part) else same
        # Another process may be at the same part: whoever is last leaves the same.
        part_of = folder / f"{key}.{os.getpid()}"
        ir.save(model, part_of)
        part_of.replace(folder / f"{key}.onnx")
        return trace_once(part, examples)

    return trace_once


def refuse(*_: Any) -> NoReturn:
    """In place of PyTorch's decomposition: no part of ours has an operator that needs it."""
    raise AssertionError("this part is traced in half the time without the operator that needs it")


def keeps_weights(model: ir.Model, part: nn.Module) -> bool:
    """Whether a trace holds the part's weights as they are, and nothing computed from them.

    What it holds beside them is too small for that; weights as small are told apart by content.
    """
    weights = part.state_dict()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            return False
        if name in weights:
            if tensor.tobytes() != bytes_of(weights[name]):
                return False
        elif tensor.size > SMALL:
            return False
    return True


def put_weights(model: ir.Model, part: nn.Module) -> ir.Model:
    """Puts a part's weights in the place of those of another."""
    weights = part.state_dict()
    for name, value in model.graph.initializers.items():
        if name in weights:
            value.const_value = TorchTensor(weights[name].detach().contiguous(), name=name)
    return model


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
    for file in sorted(files_of(CODE)):
        digest.update(f"{file.relative_to(ROOT)}\0{hash_file(file)}\0".encode())
    return digest.hexdigest()[:16]


def describe_part(part: nn.Module, examples: tuple[Any, ...], weights: bool = True) -> str:
    """A hash of all that a part's trace depends on; without `weights` of what they have in common.

    Those are type and shape, which of them are equal, which have one value throughout, and the
    content of small ones: the tracer merges what is equal, and computes what is small.

    Raises:
        TypeError: a module has an attribute that can't be described.
    """
    digest = hashlib.sha256(repr((examples, weights)).encode())
    for name, module in part.named_modules():
        attributes = sorted(vars(module).keys() - INTERNAL)
        described = [(key, describe_value(vars(module)[key], key)) for key in attributes]
        digest.update(repr((name, describe_value(type(module), name), described)).encode())
    first: dict[bytes, str] = {}
    kept = part.state_dict()
    # Buffers that are not saved come last, always by content: put_weights puts none in.
    for name, value in (kept | dict(part.named_buffers(remove_duplicate=False))).items():
        digest.update(repr((name, value.dtype, value.shape)).encode())
        content = bytes_of(value)
        one_value = value.numel() > 0 and bool((value == value.reshape(-1)[0]).all())
        if weights or name not in kept or value.numel() <= SMALL or one_value:
            digest.update(content)
        digest.update(first.setdefault(hashlib.sha256(content).digest(), name).encode())
    return digest.hexdigest()


def describe_value(value: Any, name: str) -> object:
    """What of an attribute is the same in every process where its content is.

    Args:
        value: the attribute.
        name: of it, for the error.

    Raises:
        TypeError: it is of a kind whose content is not known here.
    """
    inside = functools.partial(describe_value, name=name)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        return type(value).__qualname__, [inside(one) for one in value]
    if isinstance(value, set | frozenset):
        return type(value).__qualname__, sorted(repr(inside(one)) for one in value)
    if isinstance(value, dict):
        return "dict", [(inside(key), inside(one)) for key, one in value.items()]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), bytes_of(value)
    if isinstance(value, NAMED) and getattr(value, "__closure__", None) is None:
        return f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(one.name, inside(getattr(value, one.name))) for one in dataclasses.fields(value)]
        return inside(type(value)), fields
    raise TypeError(f"the attribute {name} is a {type(value).__name__}: describe_value knows none")


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
