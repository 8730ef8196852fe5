"""Fixture: a small bundle, whose files are only words."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from runtime.bundle.reader import write_manifest
from tests.support.manifests import FIELDS


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "model.onnx").write_bytes(b"graph")
    (path / "model.onnx.data").write_bytes(b"weights")
    (path / "tokenizer.json").write_bytes(b"{}")
    write_manifest(path, **copy.deepcopy(FIELDS))
    return path
