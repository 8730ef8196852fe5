"""Fixtures: a tiny random model, its checkpoint and its bundle, made once a session.

Where torch is not installed, as in the base install, the bundles are taken from a folder that was
made before, and tests that need torch, in their module or by a fixture, are left out.
"""

from __future__ import annotations

import ast
import gc
import os
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from runtime import Engine
from tests.support.imports import imported_names

if HAS_TORCH := find_spec("torch") is not None:
    from tests.support.making import *  # noqa: F403
else:
    from tests.support.prebuilt import *  # noqa: F403

# Test modules that import onnxruntime themselves, and commands, have nothing reported either.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "ouroboros", "export", "study"}
# Whose sessions the packages above would be needed for, however light the module that asks.
MAKING = {"tiny_original", "tiny_checkpoint", "block_checkpoint", "massive_checkpoint"}

# Files whose slow tests take minutes, the longest first: a process that got one last would work
# while the others wait. pytest-xdist by itself begins with the files of the most tests.
# Two that trace the same parts are apart, so that one finds what the other made.
LONGEST = (
    "tests/export/test_precision.py",
    "tests/export/test_smollm2.py",
    "tests/ouroboros/training/test_compiling.py",
    "tests/ouroboros/training/test_resume.py",
    "tests/docs/test_snippets.py",
    "tests/conformance/test_conformance.py",
    "tests/export/graph/test_halting.py",
    "tests/cli/test_interrupt.py",
    "tests/ouroboros/training/test_sharded.py",
    "tests/export/test_export_variants.py",
    "tests/runtime/cpp/test_build.py",
    "tests/study/test_work.py",
    "tests/ouroboros/training/test_parallel.py",
    "tests/export/graph/test_storage.py",
    "tests/export/tensorrt/test_plans.py",
    "tests/ouroboros/conversion/test_convert.py",
    "tests/export/test_chat.py",
    "tests/runtime/parity/test_tampering.py",
    "tests/ouroboros/training/test_qat.py",
    "tests/ouroboros/conversion/test_splits.py",
)


@pytest.fixture(scope="session")
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    """An engine on the tiny bundle, on the CPU whatever the machine has: others are held to it."""
    with Engine.open(tiny_bundle, backend="cpu", threads=1) as opened:
        yield opened


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports what the tests import, and takes it from the cyclic garbage collector's sight.

    It stays to the end, and would be looked through once a training, and now and then between.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves out modules that import, anywhere, what is not there, and such rooms."""
    if HAS_TORCH or collection_path == Path(__file__).parent:
        return None
    module = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    if not module.is_file() or module.suffix != ".py":
        return None
    return True if imports_heavy(module, set()) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; leaves out tests that make a model where torch is not there."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONGEST)))
    if not HAS_TORCH:
        made = [one for one in items if not MAKING & set(getattr(one, "fixturenames", ()))]
        items[:] = [one for one in made if one.get_closest_marker("needs_torch") is None]


def imports_heavy(module: Path, seen: set[Path]) -> bool:
    """Whether a test module imports one of HEAVY, itself or by a helper of the tests."""
    seen.add(module)
    names = imported_names(ast.walk(ast.parse(module.read_text(encoding="utf-8"))))
    if {name.split(".")[0] for name in names} & HEAVY:
        return True
    root = Path(__file__).resolve().parents[1]
    helpers = [root / f"{name.replace('.', '/')}.py" for name in names if name.startswith("tests.")]
    return any(imports_heavy(one, seen) for one in helpers if one.is_file() and one not in seen)
