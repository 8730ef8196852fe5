"""Every variant of the model, exported and compared with PyTorch at every depth."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from export import export_bundle
from ouroboros import convert, load_checkpoint, save_checkpoint
from runtime.bundle.reader import read_manifest
from runtime.parity.check import check_bundle
from runtime.parity.verdict import PASS
from tests.support.tiny import randomise

DEPTHS = (1, 2, 3)
SPLIT: dict[str, Any] = {"prelude": 2, "coda": 2, "recurrent": 3}


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a model differs from the tiny one of the fixtures."""

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    tied: bool = True


# Together they hold every variant once; alone, below, each is told apart.
TOGETHER = {
    "per_step, no prelude, bridge at exit": Variant(
        {"bases": "per_step", "prelude": 0, "bridge": "exit"}
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
}
FAST = "per_step, no prelude, bridge at exit"


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
