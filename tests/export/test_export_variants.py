"""Every variant of the model, exported and compared with PyTorch at every depth."""

from __future__ import annotations

import dataclasses
import itertools
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
from tests.support.tiny import MAX_DEPTH, randomise

DEPTHS = (1, 2, 3)
TRAINED = (2, 5)  # the second is deeper than the bundle runs, and still says that it was trained
# Any two values that go together stand together in a row: a fault that needs two is found. `block`
# is how many layers are looped; the last row holds no pair of its own, but a third layer and a
# gate whose first step starts open.
TABLE = """
modulation  bases     gate  pooling  prelude  coda  bridge  injection  block  head
controller  per_step  no    causal   yes      no    exit    add        1      untied
controller  per_step  no    token    yes      yes   none    add        2      tied
controller  mean      yes   causal   no       no    entry   none       1      untied
static      per_step  yes   mean     yes      yes   exit    none       2      untied
none        mean      no    mean     no       yes   exit    add        1      tied
free        mean      no    causal   yes      no    entry   add        2      tied
static      mean      yes   token    no       no    none    add        1      untied
static      per_step  no    causal   no       yes   entry   none       1      tied
none        mean      yes   causal   no       no    none    none       2      tied
free        mean      no    token    yes      yes   exit    none       1      untied
free        mean      yes   mean     no       no    none    none       1      tied
none        mean      no    token    yes      no    entry   add        2      untied
controller  mean      yes   mean     no       no    entry   none       1      tied
controller  mean      open  causal   no       no    none    none       3      tied
"""
NAMES, *ROWS = (line.split() for line in TABLE.strip().splitlines())
APART = {("per_step", "free"), ("per_step", "none")}  # bases of what has none


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a model differs from the tiny one of the fixtures."""

    options: dict[str, Any]
    tied: bool


def read_variant(row: list[str]) -> Variant:
    cells = dict(zip(NAMES, row, strict=True))
    looped = int(cells["block"])
    kept = 2 if looped == 1 else 1
    options = {
        "modulation": cells["modulation"],
        "bases": cells["bases"],
        "gate": cells["gate"] != "no",
        "gate_start": "open" if cells["gate"] == "open" else "alike",
        "pooling": cells["pooling"],
        "prelude": kept if cells["prelude"] == "yes" else 0,
        "coda": kept if cells["coda"] == "yes" else 0,
        "bridge": cells["bridge"],
        "input_injection": cells["injection"],
        "recurrent": {1: 3, 2: "2-3", 3: "2-4"}[looped],
    }
    return Variant(options, cells["head"] == "tied")


def test_any_two_values_stand_together() -> None:
    values = [sorted(set(column)) for column in zip(*ROWS[:-1], strict=True)]
    missing = [
        ((NAMES[one], first), (NAMES[other], second))
        for one, other in itertools.combinations(range(len(NAMES)), 2)
        for first, second in itertools.product(values[one], values[other])
        if (second, first) not in APART
        and not any((row[one], row[other]) == (first, second) for row in ROWS)
    ]
    assert missing == []


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
    options = {"rank": 4, "max_depth": 5, "depth": 2, "norm_init": "ones"}
    convert(str(original), folder / "checkpoint", **options, **variant.options)
    converted, tokenizer = load_checkpoint(folder / "checkpoint")
    assert converted.config.tie_word_embeddings == variant.tied
    randomise(converted)
    converted.config.trained_depths = list(TRAINED)
    save_checkpoint(converted, tokenizer, folder / "checkpoint")
    export_bundle(folder / "checkpoint", folder / "bundle", max_depth=max(DEPTHS))
    return folder / "bundle"


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", [pytest.param(read_variant(row), id=" ".join(row)) for row in ROWS]
)
def test_variant_equals_pytorch(tiny_original: Path, tmp_path: Path, variant: Variant) -> None:
    bundle = build(tiny_original, tmp_path, variant)
    report = check_bundle(bundle, threads=1)
    assert report.verdict == PASS, [r.to_json() for r in report.rows if r.verdict != PASS][:3]
    assert report.depths == DEPTHS
    manifest = read_manifest(bundle)
    model = manifest.model
    assert manifest.depth.trained == TRAINED
    for name in ("pooling", "bridge", "prelude", "coda"):
        assert getattr(model, name) == variant.options[name], name


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


@pytest.mark.slow
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
