"""Session fixtures that make a tiny model, its checkpoint and its bundle; they need torch.

Nothing here loads it before a test asks: the process that hands the tests out needs none of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.halting import write_halting
from tests.support.pictures import pictures_kept
from tests.support.tiny import build_bundle, build_checkpoint, build_massive, build_original

__all__ = [
    "block_bundle",
    "block_checkpoint",
    "halting_bundle",
    "halting_checkpoint",
    "massive_bundle",
    "massive_checkpoint",
    "no_collections",
    "pictures_kept",
    "tiny_bundle",
    "tiny_checkpoint",
    "tiny_original",
    "traces_kept",
]


@pytest.fixture(scope="session", autouse=True)
def traces_kept() -> Iterator[None]:
    """Traces each part once for a state of the code."""
    from export.graph import trace
    from tests.support.traces import keep_traces

    before = trace._trace
    keep_traces()
    yield
    trace._trace = before


@pytest.fixture(scope="session", autouse=True)
def no_collections() -> Iterator[None]:
    """Lets trainings end without a search of the whole heap, a large one in a test's process.

    Python's own collections, now and then, are enough.
    """
    memory = sys.modules.get("accelerate.utils.memory")
    with pytest.MonkeyPatch.context() as patch:
        if memory is not None:
            patch.setattr(memory, "clear_device_cache", lambda garbage_collection=False: None)
        yield


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all processes of one test run see."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def make_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """Returns what `build` writes to a path that is not there yet, made by one process for all."""
    folder = shared_folder(factory) / "made"
    folder.mkdir(exist_ok=True)
    done = folder / f"{name}.done"
    with FileLock(folder / f"{name}.lock"):
        if not done.exists():
            build(folder / name)
            done.touch()
    return folder / name


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 6 layers with a byte-level tokenizer and a chat template."""
    return make_once(tmp_path_factory, "original", build_original)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its conversion, 2 | 1 | 2, with every trained part random, so that each one matters."""
    return make_once(tmp_path_factory, "tiny", lambda path: build_checkpoint(tiny_original, path))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny checkpoint, depths 1..5; do not change it, copy it."""
    return make_once(
        tmp_path_factory, "tiny-bundle", lambda path: build_bundle(tiny_checkpoint, path)
    )


@pytest.fixture(scope="session")
def halting_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a trained halter; do not change it, copy it."""
    return make_once(
        tmp_path_factory,
        "halting-checkpoint",
        lambda path: write_halting(tiny_checkpoint, path, "trained"),
    )


@pytest.fixture(scope="session")
def halting_bundle(halting_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, depths 1..5; do not change it, copy it."""
    return make_once(
        tmp_path_factory, "halting-bundle", lambda path: build_bundle(halting_checkpoint, path)
    )


@pytest.fixture(scope="session")
def massive_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with massive activations, converted like the tiny checkpoint."""
    original = make_once(tmp_path_factory, "massive-original", build_massive)
    return make_once(
        tmp_path_factory, "massive", lambda path: build_checkpoint(original, path, massive=True)
    )


@pytest.fixture(scope="session")
def massive_bundle(massive_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, depths 1..5; do not change it, copy it."""
    return make_once(
        tmp_path_factory, "massive-bundle", lambda path: build_bundle(massive_checkpoint, path)
    )


@pytest.fixture(scope="session")
def block_checkpoint(tiny_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion that loops a block of two layers, 1 | 2 | 1, every trained part random."""
    return make_once(
        tmp_path_factory, "block", lambda path: build_checkpoint(tiny_original, path, block=True)
    )


@pytest.fixture(scope="session")
def block_bundle(block_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, depths 1..5; do not change it, copy it."""
    return make_once(
        tmp_path_factory, "block-bundle", lambda path: build_bundle(block_checkpoint, path)
    )
