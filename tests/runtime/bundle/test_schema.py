"""The JSON Schema of the manifest: made from the code, and kept beside the specification."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from runtime.bundle.schema import make_schema, render_schema
from tests.support.paths import ROOT


@pytest.fixture
def manifest(tiny_bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiny_bundle / "manifest.json").read_text())
    return found


def test_the_schema_in_the_docs_is_the_code() -> None:
    assert (ROOT / "docs" / "manifest.schema.json").read_text() == render_schema()


def test_a_manifest_is_valid(manifest: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(make_schema())
    assert list(Draft202012Validator(make_schema()).iter_errors(manifest)) == []


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format_version",), 3),
        (("model", "bridge"), "both"),
        (("model", "hidden_size"), 0),
        (("model", "halting"), 1),
        (("depth", "trained"), [0]),
        (("precision",), "fp64"),
        (("tokenizer", "bos_token_id"), "1"),
        (("sampling", "top_p"), 0),
        (("files", "model.onnx", "sha256"), "0"),
        (("surprise",), 1),
    ],
)
def test_what_the_reader_refuses_is_not_valid(
    manifest: dict[str, Any], keys: tuple[str, ...], value: Any
) -> None:
    data = copy.deepcopy(manifest)
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    assert list(Draft202012Validator(make_schema()).iter_errors(data)) != []
