"""Session fixtures that make a tiny model, its checkpoint and its bundle; they need torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from export.graph import trace
from tests.support.halting import write_halting
from tests.support.tiny import build_bundle, build_checkpoint, build_massive, build_original

__all__ = [
    "halting_bundle",
    "massive_bundle",
    "massive_checkpoint",
    "tiny_bundle",
    "tiny_checkpoint",
    "tiny_original",
    "traces_kept",
]


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 6 layers with a byte-level tokenizer and a chat template."""
    path = tmp_path_factory.mktemp("original")
    build_original(path)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its conversion, 2 | 1 | 2, with every trained part random, so that each one matters."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    build_checkpoint(tiny_original, path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny checkpoint, depths 1..5; do not change it, copy it."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    build_bundle(tiny_checkpoint, path)
    return path


@pytest.fixture(scope="session")
def halting_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny checkpoint with a trained halter, its checkpoint beside it."""
    path = tmp_path_factory.mktemp("halting")
    write_halting(tiny_checkpoint, path / "checkpoint", "trained")
    build_bundle(path / "checkpoint", path / "bundle")
    return path / "bundle"


@pytest.fixture(scope="session")
def massive_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with massive activations, converted like the tiny checkpoint."""
    path = tmp_path_factory.mktemp("massive")
    build_massive(path / "original")
    build_checkpoint(path / "original", path / "tiny", massive=True)
    return path / "tiny"


@pytest.fixture(scope="session")
def massive_bundle(massive_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, depths 1..5; do not change it, copy it."""
    path = tmp_path_factory.mktemp("massive-bundle") / "tiny"
    build_bundle(massive_checkpoint, path)
    return path


@pytest.fixture(scope="session", autouse=True)
def traces_kept() -> Iterator[None]:
    """Traces each part once a session: the tracer takes seconds however small the model is.

    Parts are the same where their code's classes, plain attributes and weights are, and what they
    are traced with.
    """
    kept: dict[str, ir.Model] = {}
    traced = trace._trace

    def trace_once(part: nn.Module, examples: tuple[Any, ...]) -> ir.Model:
        key = describe_part(part, examples)
        if key not in kept:
            kept[key] = traced(part, examples)
        return kept[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_trace", trace_once)
        yield


def describe_part(part: nn.Module, examples: tuple[Any, ...]) -> str:
    """A hash of all that a part's trace depends on."""
    digest = hashlib.sha256(repr((torch.__version__, examples)).encode())
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
