"""Fixtures: a tiny random model, its checkpoint and its bundle, made once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import build_bundle, build_checkpoint, build_massive, build_original

from runtime import Engine


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


@pytest.fixture(scope="session")
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    """An engine on the tiny bundle."""
    with Engine.open(tiny_bundle, threads=1) as opened:
        yield opened
