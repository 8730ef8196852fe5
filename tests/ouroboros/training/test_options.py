"""Options and recipes of a run, and where it may write: what is refused before it trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ouroboros.checkpoint import load_checkpoint, save_checkpoint
from ouroboros.errors import ConfigError, DataError, TrainingError
from ouroboros.training.recipe import TrainOptions, make_options, read_recipe
from ouroboros.training.run import train
from tests.support.paths import ROOT
from tests.support.training import options, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("kind", ["original", "bundle", "both", "files"])
def test_folder_of_something_else_is_left_alone(tmp_path: Path, corpus: Path, kind: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    files = {
        "original": {"config.json": '{"model_type": "llama"}', "model.safetensors": "weights"},
        "bundle": {"manifest.json": "{}", "model.onnx": "graph"},
        "both": {"manifest.json": "{}", "config.json": '{"model_type": "ouroboros"}'},
        "files": {"thesis.txt": "years of work"},
    }[kind]
    for name, content in files.items():
        (out / name).write_text(content)
    (out / "state").mkdir()
    for resume in (False, True):
        # Before anything is loaded: is what it is made from is not even there.
        with pytest.raises(TrainingError, match=r"left alone; give a new directory|also holds"):
            train(tmp_path / "nowhere", out, options(corpus), resume=resume)
    assert {p.name: p.read_text() for p in out.iterdir() if p.is_file()} == files


def test_folders_a_run_may_use(tmp_path: Path, corpus: Path, checkpoint: Path) -> None:
    run = options(corpus, train_steps=1)
    empty, begun, earlier = (tmp_path / name for name in ("empty", "begun", "earlier"))
    empty.mkdir()
    (begun / "state").mkdir(parents=True)
    (begun / "logs").mkdir()
    save_checkpoint(tiny_model(), tiny_tokenizer(), earlier)
    for out in (empty, begun, earlier):
        train(checkpoint, out, run)
        assert load_checkpoint(out)[0].config.trained_depths == [1, 2, 3]


def test_sequence_longer_than_the_positions_is_refused(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    with pytest.raises(DataError, match="seq_len=129 is more than the model's 128 positions"):
        train(checkpoint, out, options(corpus, seq_len=129))
    train(checkpoint, out, options(corpus, seq_len=128, train_steps=1))


def test_token_outside_the_vocabulary_is_refused(corpus: Path, heldout: Path) -> None:
    path, out = corpus.parent / "small", corpus.parent / "trained"
    save_checkpoint(tiny_model(20), tiny_tokenizer(), path)
    message = r"the training text: .* token id 2\d, the model's vocabulary is 0\.\.19"
    with pytest.raises(DataError, match=message):
        train(path, out, options(corpus))
    for file in corpus.iterdir():
        file.write_text("abcdef" * 20)
    with pytest.raises(DataError, match=r"held-out text 'held': .* token id 2\d"):
        train(path, out, options(corpus, eval=(heldout,)))


def test_bad_runs_are_refused_before_anything_is_written(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    with pytest.raises(ConfigError, match="depth=7"):
        train(checkpoint, out, options(corpus, depth="1-7"))
    for changes, flag in (({"depth": "1-16"}, "depth"), ({"eval_depths": (1, 8)}, "eval-depth")):
        advice = f"max_depth 6; give --{flag} 1-6 or convert with a larger --max-depth"
        with pytest.raises(ConfigError, match=advice):
            train(checkpoint, out, options(corpus, **changes))
    ungated = corpus.parent / "ungated"
    save_checkpoint(tiny_model(gate=False), tiny_tokenizer(), ungated)
    with pytest.raises(ConfigError, match=r"gate_learning_rate=0\.1 is of a gate, and this"):
        train(ungated, out, options(corpus, gate_learning_rate=0.1))
    with pytest.raises(TrainingError, match="is what it is made from"):
        train(checkpoint, checkpoint, options(corpus))
    assert not out.exists()


def test_recipe_sets_options_and_flags_win(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "data: [texts]\nlearning_rate: 1e-4\ndepth: 8\nseed: 3\ncompile: true\n"
    )
    (tmp_path / "r.toml").write_text(
        'data = "texts"\nlearning_rate = 1e-4\ndepth = "8"\nseed=3\ncompile=true\n'
    )
    for name in ("r.yaml", "r.toml"):
        made = make_options({"seed": 7, "warmup": None}, tmp_path / name)
        assert made.data == (tmp_path / "texts",)
        assert made.compile is True
        assert (made.learning_rate, made.depth, made.seed, made.warmup) == (1e-4, "8", 7, 10)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("heal*.toml")), ids=lambda p: p.stem
)
def test_recipes_of_the_repository_are_read(path: Path) -> None:
    made = make_options({"data": (Path("texts"),), "teacher": "original"}, path)
    assert made.train_coda in ("lora", "full")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train_stepz: 3", r"unknown option 'train_stepz'; did you mean train_steps\?"),
        ("colour: 3", "unknown option 'colour'; the options are adapter_alpha"),
        ("train_steps: many", "train_steps='many' is not a whole number"),
        ("train_steps: true", "train_steps=True is not a whole number"),
        ("train_steps: 3.0", r"train_steps=3\.0 is not a whole number"),
        ("train_steps: null", "train_steps=None is not a whole number"),
        ("learning_rate: high", "learning_rate='high' is not a number"),
        ("learning_rate: true", "learning_rate=True is not a number"),
        ("train_recurent: full", r"unknown option .* did you mean train_recurrent\?"),
        ("distill: much", "distill='much' is not a number"),
        ("teacher: 3", "teacher=3 is not a text"),
        ("compile: 1", "compile=1 is not true or false"),
        ("depth: 8.0", r"depth=8\.0 is not a text"),
        ("data: [a, 3]", r"data=\['a', 3\] is not a path, or a list of them"),
        ("eval_depths: [1, two]", r"eval_depths=\[1, 'two'\] is not a whole number, or a list"),
        ("eval_depths: &a [*a]", "eval_depths=.* is not a whole number, or a list"),
        ("- 1", "a recipe is a table"),
        ("a: [", "not YAML"),
        ("seed: 1\nseed: 2", "not YAML: 'seed' is given twice; mend the recipe"),
        ("data: {a: 1, a: 2}", "not YAML: 'a' is given twice"),
        ("? [1]\n: 1", "not YAML: while constructing a mapping"),
        ("train_steps: 2024-13-45", "not YAML: month must be in"),
        ("data: " + "[" * 5000, "not YAML: maximum recursion depth"),
        ('data: "\\ud800"', "data='.*' holds NUL or half a surrogate pair"),
        ('state_cache: "a\\0b"', "state_cache='.*' holds NUL or half a surrogate pair"),
        ("[]", "a recipe is a table"),
        ("false", "a recipe is a table"),
    ],
)
def test_bad_recipe_is_refused(tmp_path: Path, content: str, message: str) -> None:
    refuse_recipe(tmp_path / "r.yaml", content, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed = 1\nseed = 2", "not TOML: Cannot overwrite a value"),
        ("train_steps = " + "9" * 5000, "not TOML: Exceeds the limit"),
        ("data = " + "[" * 5000, "not TOML: maximum recursion depth"),
    ],
)
def test_bad_toml_is_refused(tmp_path: Path, content: str, message: str) -> None:
    refuse_recipe(tmp_path / "r.toml", content, message)


def test_what_a_recipe_takes_over_it_may_give_anew(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("<<: &usual {seed: 1, warmup: 2}\nseed: 3\n")
    assert read_recipe(tmp_path / "r.yaml") == {"seed": 3, "warmup": 2}


def test_an_empty_recipe_holds_nothing(tmp_path: Path) -> None:
    for name in ("r.yaml", "r.toml"):
        (tmp_path / name).write_text("# nothing yet\n")
        assert read_recipe(tmp_path / name) == {}


def refuse_recipe(path: Path, content: str, message: str) -> None:
    path.write_text(content)
    with pytest.raises(TrainingError, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": "0"}, "depth=0 is not allowed"),
        ({"depth": "-3"}, "depth='-3' is no depth"),
        ({"depth": "9-3"}, "depth='9-3' is no depth"),
        ({"train_steps": 0}, "train_steps=0 is not allowed; give 1 or more"),
        ({"seq_len": 1}, "seq_len=1 is not allowed"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is not allowed"),
        (
            {"learning_rate": 1e38},
            r"learning_rate=1e\+38 is not allowed; give more than 0 and at",
        ),
        ({"seed": 5000000000}, r"seed=5000000000 is not allowed; give 0\.\.4294967295"),
        ({"learning_rate": math.nan}, "learning_rate=nan is not allowed"),
        ({"precision": "fp8"}, "precision='fp8' is unknown; choose one of fp32, bf16"),
        ({"train_coda": "some"}, "train_coda='some' is unknown"),
        ({"train_embedding": "norms"}, "train_embedding='norms' is unknown; choose one of frozen"),
        (
            {"train_embedding": "full", "state_cache": "states"},
            "an embedding that trains changes the states .* leave --state-cache out",
        ),
        (
            {"train_recurrent": "norms"},
            "train_recurrent='norms' is unknown; choose one of frozen, lora, full",
        ),
        ({"distill": 1.5, "teacher": "x"}, "distill=1.5 is not allowed; give a share, 0 to 1"),
        ({"distill": math.nan, "teacher": "x"}, "distill=nan is not allowed"),
        ({"temperature": 0.0, "teacher": "x"}, "temperature=0.0 is not allowed"),
        ({"temperature": math.inf, "teacher": "x"}, "temperature=inf is not allowed"),
        ({"layer_learning_rate": -1e-3, "train_coda": "full"}, "layer_learning_rate=-0.001 is"),
        ({"gate_learning_rate": math.inf}, "gate_learning_rate=inf is not allowed; give 0"),
        ({"distill": 0.9}, "distill=0.9 is of distillation, and there is no teacher; give --te"),
        ({"temperature": 2.0}, "temperature=2.0 is of distillation, .* leave --temperature out"),
        ({"distill": 0.0, "teacher": "x"}, "distill=0.0 makes no use of a teacher"),
        (
            {"layer_learning_rate": 1e-4},
            "layer_learning_rate=0.0001 is of layers .* give .* or --train-embedding, or leave it",
        ),
        ({"adapter_rank": 0, "train_coda": "lora"}, "adapter_rank=0 is not allowed; give 1"),
        ({"adapter_alpha": 0.0, "train_coda": "lora"}, "adapter_alpha=0.0 is not allowed"),
        ({"adapter_alpha": math.inf, "train_coda": "lora"}, "adapter_alpha=inf is not allowed"),
        (
            {"adapter_rank": 8, "train_coda": "full"},
            "adapter_rank=8 is of adapters, and none trains; give --train-coda lora or",
        ),
        ({"depth_curriculum": -1}, "depth_curriculum=-1 is not allowed; give 0 or more"),
        ({"depth_curriculum": 301}, "depth_curriculum=301 ends after the run; give at most --tr"),
        (
            {"depth_curriculum": 9, "depth": "8"},
            "depth_curriculum=9 is of a range, and depth=8 is one depth; give a range like",
        ),
        (
            {"depth_term": 0.5, "depth": "8-8"},
            "depth_term=0.5 is of a range, and depth=8-8 is .* give a range like --depth 1-8,",
        ),
        (
            {"depth_draw": "inverse", "depth": "1"},
            "depth_draw=inverse is of a range, and depth=1 is .* give a range like --depth 1-2, or",
        ),
        ({"depth_term": math.nan}, "depth_term=nan is not allowed"),
        ({"depth_term": -0.5}, "depth_term=-0.5 is not allowed; give 0 or more"),
        ({"backprop_steps": -1}, "backprop_steps=-1 is not allowed"),
        ({"adapter_alpha": 8.0}, "adapter_alpha=8.0 is of adapters, .* leave --adapter-alpha"),
        ({"data": ()}, "no training text"),
        ({"train_steps": 10**30}, "train_steps=10+ is not allowed; give at most 2147483647"),
        ({"batch_size": 2**31}, "batch_size=2147483648 is not allowed"),
        ({"batch_size": 2**30, "grad_accum": 2**30}, "draw [0-9,]+ windows; give less"),
        ({"state_cache": "x", "state_cache_gb": 1e300}, r"state_cache_gb=1e\+300 is not allowed"),
        ({"gate_learning_rate": 1e38}, r"gate_learning_rate=1e\+38 is .*, at most 1e\+30"),
        ({"depth": "9" * 5000}, "^depth='9{79} is no depth"),
    ],
)
def test_bad_option_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainOptions(**{"data": (Path("x"),), **changes})
