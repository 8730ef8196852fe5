"""A whole study on a tiny model: run, skipped, gone on with, changed; and its report."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from demo.stages import source_hash
from ouroboros.errors import TrainingError
from study import report as report_module
from study.plan import PLAN as REAL_PLAN
from study.plan import Plan, StudyError, read_plan
from study.records import LIKE, read_run, still_holds, write_run
from study.run import list_runs, run_study
from study.scoring import Scoring
from study.texts import keep_texts, known_texts
from study.work import Study
from tests.support.study import PLAN, write_plan


def said(study: Study) -> tuple[Study, list[str]]:
    lines: list[str] = []
    return dataclasses.replace(study, say=lines.append), lines


def ask_downstream(study: Study) -> Study:
    """The same study, whose stages are all scored on downstream tasks."""
    stages = tuple(dataclasses.replace(one, downstream=True) for one in study.plan.stages)
    return dataclasses.replace(study, plan=dataclasses.replace(study.plan, stages=stages))


def first_seed(plan: Plan) -> Plan:
    stages = tuple(dataclasses.replace(one, seeds=one.seeds[:1]) for one in plan.stages)
    return dataclasses.replace(plan, stages=stages)


@pytest.mark.slow
def test_study_from_end_to_end(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "docs"
    out.mkdir()
    study, lines = said(study)
    assert run_study(study, out) == {}
    report = json.loads((out / "study.json").read_text())
    assert [(run["arm"], run["seed"]) for run in report["runs"]] == [
        ("bridge", 0), ("controller", 0), ("bridge", 1), ("controller", 1), ("best-1-full", 0),
    ]  # fmt: skip
    assert report["missing"] == []
    bridge, controller, *_, best = report["runs"]
    assert set(bridge["heldout"]) == {"1"}
    assert set(controller["heldout"]) == {"1", "2"}
    assert set(controller["heldout"]["2"]) == {"wiki", "code"}
    assert controller["tokens"] == 96
    assert controller["train_steps"] == 3
    # A converted model of the tiny kind: a map of 64, and on it a gate, norms and a Controller.
    assert bridge["trainable"] == 64 * 64 + 64
    style = (64 * 256 + 256) + 3 * 128 + (384 * 256 + 256) + (256 * 128 + 128) + 128 * 7 * 2
    gate_and_norms = 2 * 64 * 64 + 64 + 3 * 64
    assert controller["trainable"] == bridge["trainable"] + gate_and_norms + style
    # What the share is of: the mean of the kinds, text like the training text apart.
    plain, full = (report["baseline"][name] for name in ("plain", "full"))
    assert plain["mean"] == pytest.approx((plain["wiki"] + plain["code"]) / 2)
    assert plain[LIKE] != plain["mean"]
    share = (plain["mean"] - controller["mean"]["2"]) / (plain["mean"] - full["mean"])
    assert controller["share"]["2"] == pytest.approx(share)
    # The best of the core by held-out loss, at its best depth, over the seeds.
    loss: dict[str, list[float]] = {}
    for run in report["runs"][:4]:
        loss.setdefault(run["arm"], []).append(min(run["mean"].values()))
    assert best["stands_for"] == min(loss, key=lambda name: sum(loss[name]))
    assert (
        best["recipe"]
        == {"bridge": "bare-full.toml", "controller": "loop-full.toml"}[best["stands_for"]]
    )
    # Seeds have starts of their own, where anything starts at random.
    assert [run["convert"]["seed"] for run in report["runs"][:4]] == [0, 0, 0, 1]
    assert len(list((study.folder / "converted").iterdir())) == 3
    assert not list((study.folder / "training").iterdir())
    curve = report["curves"]["controller"]
    assert [tokens for tokens, _ in curve["points"]] == [0, 32, 64, 96]
    page = (out / "study.md").read_text()
    assert "Nothing: every arm of the plan is finished at every seed." in page
    # Again: all of it is skipped, and the report is the same.
    del lines[:]
    run_study(study, out)
    assert [line.startswith("done before") for line in lines] == [True] * 5
    assert json.loads((out / "study.json").read_text()) == report
    table = list_runs(study)
    assert table.count(" done ") == 5
    assert "5 of 5 runs are done; the others take about 0 minutes" in table


@pytest.mark.slow
def test_killed_training_goes_on(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is interrupted between training and scoring, and in the training, ends the same."""
    arm = study.plan.arms["controller"]
    whole = study.run(arm, 0)
    shutil.rmtree(study.results / "runs")

    def interrupt(self: Scoring, checkpoint: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Scoring, "score", interrupt)
        with pytest.raises(KeyboardInterrupt):
            study.run(arm, 0)
    out = study.folder / "training" / "controller-0"
    states = sorted((out / "state").iterdir())
    assert states[-1].name == "step-3"
    shutil.rmtree(states[-1])  # as if killed after the second train step
    assert read_run(study.results, "controller", 0) is None
    again = study.run(arm, 0)
    assert again.by_window == whole.by_window
    assert again.curve == whole.curve
    assert not out.exists()


@pytest.mark.slow
def test_other_tokens_and_other_recipes_are_other_runs(study: Study, tmp_path: Path) -> None:
    arm = study.plan.arms["bridge"]
    first = study.run(arm, 0)
    assert study.finished(arm, 0) == first
    longer = dataclasses.replace(study, tokens=128)
    assert longer.finished(arm, 0) is None
    assert "to do" in list_runs(longer, ["bridge"])
    assert longer.train_options(arm, 0).train_steps == 4
    recipe = tmp_path / "recipes" / "bare.toml"
    before = recipe.read_text()
    recipe.write_text(before.replace("1e-3", "1e-4"))
    assert study.finished(arm, 0) is None
    recipe.write_text(before.replace("warmup = 1", "warmup = 1\nsave_every = 2"))
    assert study.finished(arm, 0) == first  # of no matter to the result
    # By the hash of their texts alone, on a machine that has nothing else.
    keep_texts(study.results, study.texts)
    known = known_texts(study.results)
    assert known is not None
    elsewhere = dataclasses.replace(study, texts=known, folder=tmp_path / "none")
    assert elsewhere.finished(arm, 0) == first
    with pytest.raises(StudyError, match="was measured on those of sha; give another folder"):
        keep_texts(study.results, dataclasses.replace(study.texts, sha256="other"))


@pytest.mark.slow
def test_hash_of_the_texts_is_enough_to_know_a_run_by(study: Study) -> None:
    """Of the real plan, whose arms distil."""
    plan = read_plan(REAL_PLAN)
    keep_texts(study.results, study.texts)
    known = known_texts(study.results)
    assert known is not None
    here = dataclasses.replace(study, plan=plan, tokens=plan.tokens)
    elsewhere = dataclasses.replace(here, texts=known)
    arms = [arm for arm in plan.arms.values() if not arm.best]
    assert any(here.made_of(arm, 0)["training"]["teacher"] for arm in arms)
    for arm in arms:
        assert here.made_of(arm, 0) == elsewhere.made_of(arm, 0), arm.name


def test_best_of_an_unfinished_stage_is_refused(study: Study) -> None:
    with pytest.raises(StudyError, match="4 runs are not finished, bridge at seed 0 among them"):
        study.run(study.plan.arms["best-1-full"], 0)


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others_alone(study: Study, tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    out = tmp_path / "docs"
    out.mkdir()
    text = PLAN.replace("depth_minus_bridge", "x").replace("seeds = [0, 1]", "seeds = [0]")
    study = dataclasses.replace(study, plan=write_plan(recipes, text))
    (recipes / "loop.toml").write_text('depth = "1-9"\nbatch_size = 2\nseq_len = 16\n')
    failed = run_study(study, out)
    assert list(failed) == ["controller-0", "best-1-full-0"]
    assert "depth=9 is above this checkpoint's max_depth 3" in failed["controller-0"]
    page = (out / "study.md").read_text()
    assert "- controller-0 failed: depth=9 is above" in page
    assert "`x`: not measured yet." not in page
    assert "1 of 3 runs are finished" in page


def test_unknown_arm_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no arm is called 'controler'; there are bridge, contr"):
        run_study(study, tmp_path, ["controler"])


def test_misspelt_option_of_a_recipe_is_refused(study: Study, tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "loop.toml"
    recipe.write_text(recipe.read_text() + "distil = 0.5\n")
    with pytest.raises(TrainingError, match="did you mean distill"):
        study.made_of(study.plan.arms["controller"], 0)


def test_what_a_run_is_made_of_outlives_new_options(study: Study) -> None:
    made_of = study.made_of(study.plan.arms["controller"], 0)
    training = made_of["training"]
    defaults = {"qat": "", "seed": 0, "loss_scale": 1.0}
    assert still_holds(made_of, made_of, defaults)
    newer = {**made_of, "training": {**training, "loss_scale": 1.0}}
    assert still_holds(made_of, newer, defaults)
    assert not still_holds(
        made_of, {**made_of, "training": {**training, "loss_scale": 2}}, defaults
    )
    assert not still_holds(made_of, {**made_of, "training": {**training, "seed": 1}}, defaults)
    for part in ("conversion", "scoring", "texts", "states"):
        assert not still_holds(made_of, {**made_of, part: "other"}, defaults)


@pytest.mark.slow
def test_downstream_that_fails_costs_no_run_and_is_made_up(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, lines = said(ask_downstream(study))
    arm = study.plan.arms["bridge"]

    def fail(*given: object) -> None:
        raise RuntimeError("a task is broken")

    with monkeypatch.context() as patch:
        patch.setattr("study.scoring.score_downstream", fail)
        run = study.run(arm, 0)
    assert "no downstream tasks: a task is broken" in lines
    assert run == study.finished(arm, 0)
    assert run.downstream == {}

    scores = {"piqa": {"value": 0.5, "error": 0.1, "examples": 1.0}}
    names: list[str] = []

    def score(model: object, tokenizer: object, name: str, *given: object) -> object:
        names.append(name)
        return scores

    monkeypatch.setattr("study.scoring.score_downstream", score)
    made_up = dataclasses.replace(run, downstream=scores)
    out = study.training(arm, 0)
    assert out.is_dir()  # so that it can be made up
    assert dataclasses.replace(study, keep=True).make_up(arm, run) == made_up
    assert names == ["full", "plain", "bridge-0"]
    assert study.scoring.downstream_baseline() == {"full": scores, "plain": scores}
    assert study.finished(arm, 0) == read_run(study.results, "bridge", 0) == made_up
    # As of a run whose scoring was killed: the study that skips it makes up for that.
    write_run(study.results, run)
    study = dataclasses.replace(study, plan=first_seed(study.plan))
    (tmp_path / "docs").mkdir()
    assert run_study(study, tmp_path / "docs", ["bridge"]) == {}
    assert study.finished(arm, 0) == made_up
    assert names == ["full", "plain", "bridge-0", "bridge-0"]
    assert not list(out.parent.iterdir())
    report = json.loads((tmp_path / "docs" / "study.json").read_text())
    assert report["arms"]["bridge"]["downstream"] == scores
    # And with the model gone it says what to do.
    write_run(study.results, run)
    assert study.make_up(arm, run) == run
    record = study.results / "runs" / "bridge-0.json"
    assert lines[-1].endswith(f"its trained model is gone; to have them, remove {record} and run "
                              "the arm anew")  # fmt: skip
    said_before = len(lines)
    dataclasses.replace(study, downstream=False).make_up(arm, run)
    assert study.make_up(arm, dataclasses.replace(run, seed=1)).downstream == {}
    assert len(lines) == said_before


@pytest.mark.slow
def test_record_names_the_code_that_was_loaded(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is done to the tree while a run is made."""
    monkeypatch.setattr("study.work.source_hash", lambda *places: "what lies there now")
    assert study.run(study.plan.arms["bridge"], 0).code == source_hash("ouroboros")[:12]


def test_figures_of_the_ready_model_are_read(tmp_path: Path) -> None:
    assert report_module.read_best_model(tmp_path) is None
    rows: list[dict[str, object]] = [
        {"depth": depth, "mean": 3.0 + depth, "texts": {}} for depth in (1, 8)
    ]
    results = {"tokens": 5000, "eval": {"rows": rows}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert report_module.read_best_model(tmp_path) == {
        "model": tmp_path.name, "tokens": 5000, "losses": {"1": 4.0, "8": 11.0},
    }  # fmt: skip


def test_ratios_are_read_from_a_benchmark(tmp_path: Path) -> None:
    assert report_module.read_ratios(tmp_path) == {"speed_ratio": None, "memory_ratio": None}
    ours = {"tokens_per_s": 300, "speed_ratio": 2.5, "memory_ratio": 0.5}
    forms = {"plain": {"speed_ratio": 1.0, "memory_ratio": 1.0}, "ours": ours}
    other = {"forms": {"ours": ours | {"speed_ratio": 9.0}}}
    figures = {"precisions": {"fp32": other, "bf16": {"forms": forms}}}
    (tmp_path / "train-cpu.json").write_text(json.dumps(figures))
    assert report_module.read_ratios(tmp_path) == {"speed_ratio": 2.5, "memory_ratio": 0.5}
    forms["ours_compiled"] = {"tokens_per_s": 400, "speed_ratio": 3.0, "memory_ratio": 0.4}
    (tmp_path / "train-cpu.json").write_text(json.dumps(figures))
    assert report_module.read_ratios(tmp_path) == {"speed_ratio": 3.0, "memory_ratio": 0.4}
