"""Every variant of the model, exported and compared with PyTorch at every depth."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import export_bundle
from ouroboros import convert, load_checkpoint, save_checkpoint
from runtime import Engine
from runtime.bundle.reader import read_manifest
from runtime.parity.cases import load_cases
from runtime.parity.check import check_bundle
from runtime.parity.verdict import PASS
from tests.support.tiny import MAX_DEPTH, SPLIT, randomise

DEPTHS = (1, 2, 3)
BLOCK: dict[str, Any] = {"prelude": 1, "coda": 1, "recurrent": "2-3"}


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a model differs from the tiny one of the fixtures."""

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    tied: bool = True


# Together they hold every variant once; alone, below, each is told apart.
TOGETHER = {
    "per_step, no prelude, bridge at exit, injection": Variant(
        {"bases": "per_step", "prelude": 0, "bridge": "exit", "input_injection": "add"}
    ),
    "static, no gate, no coda, bridge at entry": Variant(
        {"modulation": "static", "gate": False, "coda": 0, "bridge": "entry"}
    ),
    "token, untied, no bridge": Variant({"pooling": "token", "bridge": "none"}, tied=False),
}
ALONE = {
    "per_step": Variant({"bases": "per_step"}),
    "static": Variant({"modulation": "static"}),
    "static, per_step": Variant({"modulation": "static", "bases": "per_step"}),
    "free": Variant({"modulation": "free"}),
    "nothing modulates": Variant({"modulation": "none", "bridge": "entry"}),
    "block of two, free": Variant({**BLOCK, "modulation": "free", "pooling": "token"}),
    "no gate": Variant({"gate": False}),
    "token": Variant({"pooling": "token"}),
    "mean": Variant({"pooling": "mean"}),
    "no prelude": Variant({"prelude": 0}),
    "no coda": Variant({"coda": 0}),
    "neither": Variant({"prelude": 0, "coda": 0}),
    "untied": Variant(tied=False),
    "bridge at entry": Variant({"bridge": "entry"}),
    "bridge at exit": Variant({"bridge": "exit"}),
    "bridge at entry, neither": Variant({"bridge": "entry", "prelude": 0, "coda": 0}),
    "bridge at exit, neither": Variant({"bridge": "exit", "prelude": 0, "coda": 0}),
    "block of two, mean": Variant({**BLOCK, "pooling": "mean", "bridge": "exit"}),
    "block of two, per_step, token, static": Variant(
        {**BLOCK, "bases": "per_step", "pooling": "token", "modulation": "static"}
    ),
    "injection, bridge at entry": Variant({"bridge": "entry", "input_injection": "add"}),
    "block of three, neither": Variant({"prelude": 0, "coda": 0, "recurrent": "2-4"}),
    "block of all that is replaced, no gate": Variant({"recurrent": "2-3", "gate": False}),
}
FAST = "per_step, no prelude, bridge at exit, injection"


def build(original: Path, folder: Path, variant: Variant) -> Path:
    """Writes the variant's bundle, every trained part random, so that each one matters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not variant.tied:
        model = AutoModelForCausalLM.from_pretrained(original)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
        model.save_pretrained(folder / "untied")
        AutoTokenizer.from_pretrained(original).save_pretrained(folder / "untied")
        original = folder / "untied"
    options = {
        **SPLIT,
        "rank": 4,
        "max_depth": 3,
        "depth": 2,
        "norm_init": "ones",
        "bridge": "none",
    }
    convert(str(original), folder / "checkpoint", **options | variant.options)
    converted, tokenizer = load_checkpoint(folder / "checkpoint")
    assert converted.config.tie_word_embeddings == variant.tied
    randomise(converted)
    save_checkpoint(converted, tokenizer, folder / "checkpoint")
    export_bundle(folder / "checkpoint", folder / "bundle", max_depth=max(DEPTHS))
    return folder / "bundle"


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(TOGETHER[FAST], id=FAST),
        *(
            pytest.param(variant, id=name, marks=pytest.mark.slow)
            for name, variant in {**TOGETHER, **ALONE}.items()
            if name != FAST
        ),
    ],
)
def test_variant_equals_pytorch(tiny_original: Path, tmp_path: Path, variant: Variant) -> None:
    bundle = build(tiny_original, tmp_path, variant)
    report = check_bundle(bundle, threads=1)
    assert report.verdict == PASS, [r.to_json() for r in report.rows if r.verdict != PASS][:3]
    assert report.depths == DEPTHS
    model = read_manifest(bundle).model
    assert model.pooling == variant.options.get("pooling", "causal")
    if "bridge" in variant.options:
        assert model.bridge == variant.options["bridge"]
    assert (model.prelude, model.coda) == tuple(
        variant.options.get(name, SPLIT[name]) for name in ("prelude", "coda")
    )


def test_block_equals_pytorch_at_every_depth(block_bundle: Path) -> None:
    report = check_bundle(block_bundle, threads=1)
    assert report.verdict == PASS, [r.to_json() for r in report.rows if r.verdict != PASS][:3]
    assert report.worst_relative_l2 <= 1e-5
    assert report.depths == tuple(range(1, MAX_DEPTH + 1))
    manifest = read_manifest(block_bundle)
    assert manifest.model.recurrent_layers == 2
    shapes = {
        one.name: one.shape for one in (*manifest.graphs.onnx.inputs, *manifest.graphs.onnx.outputs)
    }
    assert shapes["past_key_values.recurrent.key"][1] == "2 * slots"
    assert shapes["new_key_values.recurrent.value"][1] == "2 * depth"
    assert shapes["past_pool_sum"][1] == "slots"
    # One step after another, in each layer after layer: other entries are other numbers.
    cases = {case.name: case for case in load_cases(block_bundle / "cases.safetensors")}
    keys = cases["prefill-d05"].outputs["new_key_values.recurrent.key"]
    assert keys.shape[1] == 5 * 2
    assert all(np.abs(keys[:, 0] - keys[:, other]).max() > 1e-3 for other in range(1, 10))


@pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")
def test_block_generates_what_pytorch_does(block_bundle: Path, block_checkpoint: Path) -> None:
    """Prompts of unequal length in one batch, each row at a depth of its own."""
    import torch

    model, _ = load_checkpoint(block_checkpoint)
    prompts, depths = [[9, 8, 7], [40, 41, 42, 43, 44, 45, 46], [100]], [4, 2, 5]
    options = {"max_new_tokens": 80, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    expected = [
        model.generate(torch.tensor([ids]), depth=depth, **options)[0, len(ids) :].tolist()
        for ids, depth in zip(prompts, depths, strict=True)
    ]
    with Engine.open(block_bundle, backend="cpu", threads=1) as engine:
        found = engine.generate(prompts, depth=depths, max_new_tokens=80)
        assert [one.tokens for one in found] == expected
        scored = engine.logits(prompts[1], depth=3)
    with torch.no_grad():
        logits = model(torch.tensor([prompts[1]]), depth=3, use_cache=False).logits[0].numpy()
    assert np.linalg.norm(scored - logits) <= 1e-5 * np.linalg.norm(logits)
