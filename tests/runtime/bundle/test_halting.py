"""What a manifest says of a halter, and what may not stand there."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from runtime.bundle import contract
from runtime.bundle.manifest import parse_manifest
from runtime.bundle.schema import make_schema
from runtime.errors import BundleError
from tests.support.manifests import SIZES

HALTING = {"kind": "trained", "threshold": 0.5, "max": 4}


@pytest.fixture
def manifest(halting_bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((halting_bundle / "manifest.json").read_text())
    return found


def test_a_halter_is_read_and_written_alike(manifest: dict[str, Any]) -> None:
    assert manifest["depth"]["halting"] == HALTING
    assert json.loads(json.dumps(parse_manifest(manifest).to_json())) == manifest
    assert list(Draft202012Validator(make_schema()).iter_errors(manifest)) == []


def test_without_a_halter_there_is_no_such_key(tiny_bundle: Path) -> None:
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    assert "halting" not in data["depth"]
    assert json.loads(json.dumps(parse_manifest(data).to_json())) == data
    assert list(Draft202012Validator(make_schema()).iter_errors(data)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "guess"}, "depth.halting.kind is 'guess'"),
        ({"threshold": 0.0}, "depth.halting.threshold is 0.0"),
        ({"threshold": 1.5}, "depth.halting.threshold is 1.5"),
        ({"threshold": "0.5"}, "depth.halting is"),
        ({"max": 0}, "depth.halting.max is 0"),
        ({"max": 6}, r"depth.halting.max is 6, allowed: 1..5"),
        ({"min": 1}, "depth.halting is"),
    ],
)
def test_a_halter_that_can_not_be_is_refused(
    manifest: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    manifest["depth"]["halting"] |= changes
    with pytest.raises(BundleError, match=words):
        parse_manifest(manifest)


def test_halting_and_its_key_belong_together(manifest: dict[str, Any], tiny_bundle: Path) -> None:
    plain = json.loads((tiny_bundle / "manifest.json").read_text())
    plain["depth"]["halting"] = copy.deepcopy(HALTING)
    with pytest.raises(BundleError, match=r"halting is false, and depth\.halting is there"):
        parse_manifest(plain)
    del manifest["depth"]["halting"]
    with pytest.raises(BundleError, match=r"halting is true, and depth\.halting is missing"):
        parse_manifest(manifest)


def test_the_graph_must_have_the_two_tensors(manifest: dict[str, Any]) -> None:
    graph = manifest["graphs"]["onnx"]
    graph["inputs"] = [one for one in graph["inputs"] if one["name"] != "halt_threshold"]
    with pytest.raises(BundleError, match="lacks the input halt_threshold"):
        parse_manifest(manifest)


def test_the_contract_adds_them_last_and_only_there() -> None:
    halting = SimpleNamespace(**{**vars(SIZES), "halting": True})
    for side in (contract.inputs, contract.outputs):
        plain, more = side(SIZES, "fp16"), side(halting, "fp16")
        assert more[:-1] == plain
    assert contract.inputs(halting, "fp16")[-1] == contract.TensorSpec(
        "halt_threshold", "float32", (1,)
    )
    assert contract.outputs(halting, "fp16")[-1] == contract.TensorSpec(
        "depth_used", "int64", ("batch",)
    )
