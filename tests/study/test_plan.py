"""The plan that ships: its arms, their sizes, and what a plan is refused for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from ouroboros.conversion.convert import UNLOOPED
from ouroboros.conversion.looped import parse_looped
from ouroboros.conversion.options import ConvertOptions
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.training.adapters import mark_trained
from study.plan import Arm, Plan, StudyError, read_plan
from study.run import main

SMOLLM2 = LlamaConfig(
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    vocab_size=49152,
    tie_word_embeddings=True,
)
MAP = 576 * 576 + 576
GATE_AND_NORMS = (2 * 576 * 576 + 576) + 16 * 576
# Style, step embeddings, the two mixing layers, and seven heads of the rank.
INNER = (576 * 256 + 256) + 16 * 128 + (384 * 256 + 256) + (256 * 128 + 128)
HEAD = 7 * 128
# In and out of q, k, v, o, gate, up, down: what one rank of a free update has at a step.
SIDES = 2 * 576 + 2 * (576 + 192) + 2 * 576 + 3 * (576 + 1536)
LAYER = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576

TRAINABLE = {
    "bridge": MAP,
    "bridge-17": MAP,
    "gate-norms": MAP + GATE_AND_NORMS,
    "gate-open": MAP + GATE_AND_NORMS + 16 * 576,
    "static": MAP + GATE_AND_NORMS + 16 * 2 * SIDES,
    "controller": MAP + GATE_AND_NORMS + INNER + 32 * HEAD,
    "block-17": MAP,
    "block-open": MAP + GATE_AND_NORMS + 16 * 576,
    "block": MAP + GATE_AND_NORMS,
    "controller-open": MAP + GATE_AND_NORMS + 16 * 576 + INNER + 32 * HEAD,
    "plain-full": 9 * LAYER + 576,
    "bridge-full": MAP + 8 * LAYER + 576,
    "bridge-17-full": MAP + 9 * LAYER + 576,
    "paper-controller": GATE_AND_NORMS + INNER + 32 * HEAD,
    "paper-static": GATE_AND_NORMS + 16 * 7 * 32,
    "paper-no-gate": 16 * 576 + INNER + 32 * HEAD,
    "paper-rank-8": GATE_AND_NORMS + INNER + 8 * HEAD,
    "paper-rank-64": GATE_AND_NORMS + INNER + 64 * HEAD,
    "pooling-token": MAP + GATE_AND_NORMS + INNER + 32 * HEAD,
}
"""By hand, at 16 steps."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan()


def count_trainable(plan: Plan, arm: Arm, recipe: str) -> int:
    """As a run counts it, from the configs alone."""
    layer, count = parse_looped(arm.convert["recurrent"])
    given = {**arm.convert, **({} if count else UNLOOPED)}
    options = dataclasses.replace(ConvertOptions(), **given)
    settings: dict[str, Any] = dataclasses.asdict(options)
    del settings["calibration"], settings["seed"], settings["split"]
    settings |= {"recurrent": layer, "recurrent_layers": count}
    with torch.device("meta"):
        model = OuroborosForCausalLM(OuroborosConfig(base_config=SMOLLM2, **settings))
        teacher = "teacher" if plan.distils(recipe) else ""
        mark_trained(model, plan.train_options(recipe, data=(Path(),), teacher=teacher))
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


@pytest.mark.parametrize("name", TRAINABLE)
def test_trainable_numbers_of_an_arm(plan: Plan, name: str) -> None:
    arm = plan.arms[name]
    assert count_trainable(plan, arm, arm.recipe) == TRAINABLE[name]


def test_as_many_layers_train_with_the_loop_as_without(plan: Plan) -> None:
    for arm in plan.stage("core").arms:
        own = count_trainable(plan, arm, arm.recipe)
        assert count_trainable(plan, arm, "study/loop-all.toml") == own + 9 * LAYER + 576


def test_free_updates_are_as_large_as_the_controller() -> None:
    controller, static = INNER + 32 * HEAD, 16 * 2 * SIDES
    assert (controller, static) == (309_888, 325_632)
    # The nearest rank, and no smaller than the Controller.
    assert controller <= static <= 1.06 * controller


@pytest.mark.parametrize("suffix", ["-lora", "-full", "-all"])
def test_best_arms_have_a_recipe_for_whatever_arm_they_take_up(plan: Plan, suffix: str) -> None:
    changes = {"train_coda", "layer_learning_rate"}
    changes |= {"train_recurrent"} if suffix == "-all" else set()
    for arm in plan.stage("core").arms:
        path = Path(arm.recipe)
        recipe = path.with_name(f"{path.stem}{suffix}.toml").as_posix()
        frozen = plan.train_options(arm.recipe, data=(Path(),), teacher="t")
        trained = plan.train_options(recipe, data=(Path(),), teacher="t")
        changed = {
            name for name, value in trained.exactness().items() if value != frozen.exactness()[name]
        }
        # Adapters of the default rank: nothing but the coda is another.
        assert changed == changes
        assert count_trainable(plan, arm, recipe) > count_trainable(plan, arm, arm.recipe)


def test_order_says_the_most_first(plan: Plan) -> None:
    order = [(arm.name, seed) for arm, seed in plan.runs()]
    assert len(order) == len(set(order))
    assert [name for name, _ in order[:2]] == ["bridge", "bridge-17"]
    core = ["gate-norms", "gate-open", "static", "controller", "controller-open"]
    assert [name for name, _ in order[6:11]] == core
    assert [seed for _, seed in order[:6]] == [0] * 2 + [1] * 2 + [2] * 2
    assert [seed for _, seed in order[6:21]] == [0] * 5 + [1] * 5 + [2] * 5
    assert {one.name for one in plan.comparisons} >= {
        "controller_minus_matched_static",
        "depth_minus_bridge",
    }


GOOD = """
[study]
tokens = 100
depth = 2
depths = [1, 2]
curve_depths = [2]
curve_points = 2
tokens_per_s = 10
seq_len = 16
windows = 1
downstream_examples = 1
prelude = 2
layer = 3
coda = 2
[[stage]]
name = "core"
seeds = [0]
[[stage.arm]]
name = "one"
question = "?"
convert = { recurrent = "3" }
recipe = "a.toml"
[[stage.arm]]
name = "two"
question = "?"
convert = { recurrent = "3" }
recipe = "b.toml"
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "tokens = 100\n",
            "token = 100\n",
            "unknown key 'token' of study ''; did you mean tokens?",
        ),
        ("depth = 2\n", "", "depth of study '' is missing"),
        ("convert = { recurrent", "convert = { recurent", "of arm 'one'; did you mean recurrent?"),
        ('name = "two"', 'name = "one"', "two arms are called 'one'"),
        (
            'recipe = "b.toml"',
            'recipe = "c.toml"',
            "'one' on 2 of 16, scored on 4 and 'two' on 4",
        ),
        ('recipe = "b.toml"', 'recipe = "e.toml"', "'two' on 2 of 16, scored on 9"),
        ("depths = [1, 2]\n", "", "depths of the study is missing"),
        ("seeds = [0]\n", "", "seeds of stage 'core' is missing"),
        (
            'recipe = "b.toml"',
            'recipe = "-full"\nbest = 1\nbest_of = "core"',
            "'two' takes up the best of 'core', which takes up arms itself",
        ),
        ('recipe = "b.toml"', 'recipe = "d.toml"', "gives seed, which the study gives"),
        ("tokens = 100\n", "tokens = [", "can't read the plan"),
        (
            'recipe = "b.toml"',
            'recipe = "-full"\nbest = 1\nbest_of = "cor"',
            "best_of of 'two' is no stage",
        ),
    ],
)
def test_bad_plans_are_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    base = "batch_size = {}\nseq_len = 16\n"
    for name, text in {
        "a": base.format(2),
        "b": base.format(2),
        "c": base.format(4),
        "d": base.format(2) + "seed = 3\n",
        "e": base.format(2) + "eval_windows = 9\n",
    }.items():
        (tmp_path / f"{name}.toml").write_text(text)
    path = tmp_path / "study.toml"
    path.write_text(GOOD)
    assert list(read_plan(path).arms) == ["one", "two"]
    assert GOOD.count(old)
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(StudyError) as caught:
        read_plan(path)
    assert words in str(caught.value)


def test_comparison_of_no_arm_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.toml").write_text("batch_size = 2\n")
    path = tmp_path / "study.toml"
    path.write_text(GOOD + '[[comparison]]\nname = "x"\narm = "one"\nminus = "tow"\nclaim = "y"\n')
    with pytest.raises(StudyError, match="x compares 'tow', which is no arm"):
        read_plan(path)


def test_absent_lm_eval_is_told_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(*given: object) -> None:
        raise AssertionError("texts are fetched")

    monkeypatch.setattr("study.run.get_texts", fetch)
    monkeypatch.setattr("study.downstream.importlib.util.find_spec", lambda name: None)
    assert main([]) == 1
    assert "error: lm-eval, which scores downstream" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="texts are fetched"):
        main(["--no-downstream"])


def test_report_alone_names_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.json").write_text('{"sha256": "sha"}')
    given = ["--report", "--results", str(tmp_path), "--out", str(tmp_path)]
    assert main(given) == 1
    said = capsys.readouterr().err
    assert f"error: {tmp_path}/baseline/" in said
    assert "is missing, what the original scores, and neither the original nor" in said
    assert said.strip().endswith("or run the study here without --report")


def test_another_number_of_tokens_does_not_replace_what_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--tokens", "50000", "--list"]) == 1
    said = capsys.readouterr().err
    assert "error: --tokens=50000 would replace what was measured at 131072; give folders" in said
