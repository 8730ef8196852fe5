"""The plan, the recipes and the texts of a study of a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from study.plan import Plan, read_plan
from study.texts import Texts

PLAN = """
[study]
tokens = 96
depth = 2
depths = [1, 2]
curve_depths = [2]
curve_points = 2
tokens_per_s = 10
seq_len = 24
windows = 2
downstream_examples = 1
prelude = 2
layer = 3
coda = 2

[convert]
prelude = 2
coda = 2
recurrent = "3"
depth = 2
max_depth = 3

[[stage]]
name = "core"
seeds = [0, 1]

[[stage.arm]]
name = "bridge"
question = "What is the map alone worth?"
convert = { recurrent = "none", bridge = "exit" }
recipe = "bare.toml"

[[stage.arm]]
name = "controller"
question = "What does the Controller add?"
convert = { rank = 2 }
recipe = "loop.toml"

[[stage]]
name = "adapted"
seeds = [0]

[[stage.arm]]
name = "best-1-full"
question = "And the coda?"
best = 1
best_of = "core"
recipe = "-full"

[[comparison]]
name = "depth_minus_bridge"
arm = "controller"
minus = "bridge"
claim = "the loop is worth more than the map"
"""
COMMON = "batch_size = 2\nseq_len = 16\nlearning_rate = 1e-3\nwarmup = 1\neval_windows = 2\n"
LOOP = COMMON + 'depth = "1-2"\nsave_every = 1\n'
RECIPES = {
    "loop": LOOP + "distill = 0.5\n",
    "loop-full": LOOP + 'train_coda = "full"\n',
    "bare": COMMON + "depth = 1\n",
    "bare-full": COMMON + 'depth = 1\ntrain_coda = "full"\n',
}
WORDS = [
    "the",
    "of",
    "and",
    "city",
    "river",
    "house",
    "water",
    "light",
    "north",
    "field",
    "stone",
    "when",
    "where",
    "people",
    "under",
]


def write_plan(folder: Path, text: str = PLAN) -> Plan:
    """Writes a plan and its recipes into a folder, and reads it."""
    folder.mkdir(exist_ok=True)
    for name, recipe in RECIPES.items():
        (folder / f"{name}.toml").write_text(recipe)
    (folder / "study.toml").write_text(text)
    return read_plan(folder / "study.toml")


def write_texts(folder: Path, model: Path) -> Texts:
    """Writes texts of random words."""
    rng = np.random.default_rng(7)
    folder.mkdir()
    passages = [" ".join(rng.choice(WORDS, size=40)) for _ in range(30)]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in passages))
    texts = {}
    for name in ("wiki", "code", "like"):
        texts[name] = folder / f"{name}.txt"
        texts[name].write_text(" ".join(rng.choice(WORDS, size=200)))
    return Texts(str(model), folder / "train.jsonl", texts.pop("like"), texts, "sha")
