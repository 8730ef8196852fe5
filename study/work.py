"""What the study computes: conversions, baselines, trained and scored runs; each once."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.stages import source_hash
from study.plan import Arm, Plan, StudyError
from study.records import (
    Run,
    as_json,
    digest,
    mean_heldout,
    read_run,
    run_path,
    still_holds,
    write_json,
    write_run,
)
from study.scoring import Scoring
from study.texts import Texts

if TYPE_CHECKING:
    from rich.console import Console

    from ouroboros.training.recipe import TrainOptions

RANDOM_STARTS = ("controller", "free")
"""Modulations that start at random, so that a seed has a conversion of its own."""


@dataclass(frozen=True)
class Study:
    """A study at work.

    Attributes:
        plan: what is studied.
        texts: on what.
        folder: where what is large and can be made anew is left.
        results: where what was measured is left, to be kept: runs, baselines, and on what texts.
        tokens: each arm is trained on, about.
        say: called with a line of progress now and then.
        console: shows a training's progress; None shows nothing.
        keep: whether trained checkpoints stay.
        downstream: whether the stages that ask for it are scored on downstream tasks.
        code: digest of the package `ouroboros` as the study began: whoever edits it meanwhile
            changes nothing of what is loaded.
    """

    plan: Plan
    texts: Texts
    folder: Path
    results: Path
    tokens: int
    say: Callable[[str], None] = print
    console: Console | None = None
    keep: bool = False
    downstream: bool = True
    code: str = field(default_factory=lambda: source_hash("ouroboros")[:12])

    @property
    def scoring(self) -> Scoring:
        """What scores its models."""
        return Scoring(self.plan, self.texts, self.results, self.folder / "tasks", self.say)

    def resolve(self, arm: Arm) -> Arm:
        """Returns what an arm is trained as: one that takes up the best of a stage is that arm.

        Raises:
            StudyError: the stage is not finished.
        """
        if not arm.best:
            return arm
        chosen = self.chosen(arm)
        path = Path(chosen.recipe)
        recipe = path.with_name(f"{path.stem}{arm.recipe}{path.suffix}").as_posix()
        return dataclasses.replace(arm, convert=chosen.convert, recipe=recipe, best=0, best_of="")

    def chosen(self, arm: Arm) -> Arm:
        """Returns the arm that one takes up: itself where it is its own.

        Which of a stage is decided once, when the stage's runs are finished, and kept.

        Raises:
            StudyError: the stage is not finished.
        """
        if not arm.best:
            return arm
        place = self.folder / f"best-of-{arm.best_of}.json"
        stage = self.plan.stage(arm.best_of)
        runs = {
            (one.name, seed): self.finished(one, seed) for one in stage.arms for seed in stage.seeds
        }
        if lacking := [name for name, run in runs.items() if run is None]:
            raise StudyError(
                f"{arm.name} takes up one of the best arms of stage {stage.name!r}, of which "
                f"{len(lacking)} runs are not finished, {lacking[0][0]} at seed {lacking[0][1]} "
                "among them; run these first"
            )
        found = {name: run.made_of for name, run in runs.items() if run is not None}
        basis = digest(sorted([*name, digest(made_of)] for name, made_of in found.items()))
        ranked = _read_ranking(place, basis)
        if ranked is None:
            means = {
                one.name: sum(_best_loss(runs[one.name, seed]) for seed in stage.seeds)
                for one in stage.arms
            }
            ranked = sorted(means, key=lambda name: means[name])
            write_json(place, {"basis": basis, "ranked": ranked})
        return self.plan.arms[ranked[arm.best - 1]]

    def train_options(self, arm: Arm, seed: int) -> TrainOptions:
        """Returns the options of a resolved arm's training."""
        plan, texts = self.plan, self.texts
        plain = plan.train_options(arm.recipe, data=(texts.train,), teacher=self._teacher(arm))
        a_step = plain.batch_size * plain.grad_accum * plain.seq_len
        steps = max(1, round(self.tokens / a_step))
        most = int(arm.convert.get("max_depth", 1)) if loops(arm) else 1
        depths = tuple(depth for depth in plan.curve_depths if depth <= most) or (most,)
        return plan.train_options(
            arm.recipe,
            data=(texts.train,),
            eval=tuple(texts.heldout.values()),
            teacher=self._teacher(arm),
            train_steps=steps,
            warmup=min(plain.warmup, steps),
            seed=seed,
            eval_every=max(1, steps // plan.curve_points),
            eval_depths=depths,
            save_every=max(1, min(plain.save_every, steps)),
            state_cache=str(self.folder / "states"),
        )

    def _teacher(self, arm: Arm) -> str:
        return self.texts.model if self.plan.distils(arm.recipe) else ""

    def conversion(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Returns the options of a resolved arm's conversion."""
        starts = arm.convert.get("modulation", "controller") in RANDOM_STARTS and loops(arm)
        return {**arm.convert, "seed": seed if starts else 0}

    def made_of(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Returns all that a resolved arm's run depends on but the code, as JSON values."""
        plan, options = self.plan, self.train_options(arm, seed)
        scoring = {
            name: getattr(plan, name)
            for name in ("seq_len", "windows", "depths", "curve_depths", "curve_points")
        }
        scoring["curve_windows"] = options.eval_windows
        made_of = {
            "conversion": self.conversion(arm, seed),
            "training": _exactness(options),
            "states": options.state_dtype,
            "texts": self.texts.sha256,
            "scoring": scoring,
        }
        return dict(as_json(made_of))

    def finished(self, arm: Arm, seed: int) -> Run | None:
        """Returns the record of a run of an arm as it is now in the plan, if there is one."""
        run = read_run(self.results, arm.name, seed)
        if run is None:
            return None
        try:
            resolved = self.resolve(arm)
        except StudyError:
            return None
        return run if still_holds(run.made_of, self.made_of(resolved, seed), _usual()) else None

    def run(self, arm: Arm, seed: int) -> Run:
        """Converts, trains and scores an arm at a seed, going on where a killed run stopped.

        Raises:
            StudyError: it takes up the best of a stage that is not finished.
            OuroError: as conversion, training and evaluation.
        """
        from ouroboros.training.run import train

        resolved = self.resolve(arm)
        made_of, options = self.made_of(resolved, seed), self.train_options(resolved, seed)
        converted = self.convert(resolved, seed)
        out = self.training(arm, seed)
        _clear_other(out, _key_of(made_of))
        report = train(converted, out, options, resume=True, console=self.console)
        began = time.perf_counter()
        by_window, facts = self.scoring.score(out)
        a_step = options.batch_size * options.grad_accum * options.seq_len
        trainable = _trainable(out, options)
        run = Run(
            arm=arm.name,
            seed=seed,
            made_of=made_of,
            stands_for=self.chosen(arm).name,
            convert=self.conversion(resolved, seed),
            recipe=resolved.recipe,
            coda=options.train_coda,
            tokens=report.train_steps * a_step,
            train_steps=report.train_steps,
            trainable=trainable,
            parameters=facts["parameters"],
            prefix=facts["prefix"],
            by_window=by_window,
            curve_prefix=_prefix(resolved, options.seq_len),
            curve=read_curve(report.history, options, a_step),
            tokens_per_s=report.tokens_per_s,
            train_s=report.seconds,
            score_s=time.perf_counter() - began,
            machine=name_machine(),
            code=self.code,
        )
        self.scoring.baseline(run.prefix, self.plan.seq_len, self.plan.windows)
        self.scoring.baseline(run.curve_prefix, options.seq_len, options.eval_windows)
        write_run(self.results, run)
        run = self.make_up(arm, run)
        # A model that could not be scored on downstream tasks stays, to be scored another time.
        if not self.keep and not self._lacks_downstream(arm, run):
            self._remove_training(out)
        gc.collect()
        return run

    def make_up(self, arm: Arm, run: Run) -> Run:
        """Scores a finished run on downstream tasks where the plan asks for it and it was not.

        What that takes is the trained model; a line says so where it is gone.
        """
        if not self._lacks_downstream(arm, run):
            return run
        out = self.training(arm, run.seed)
        if not (out / "config.json").is_file() or _read_key(out) != _key_of(run.made_of):
            self.say(
                "its downstream scores are missing and its trained model is gone; to have them, "
                f"remove {run_path(self.results, arm.name, run.seed)} and run the arm anew"
            )
            return run
        run = dataclasses.replace(run, downstream=self.scoring.try_downstream(out))
        write_run(self.results, run)
        if run.downstream and not self.keep:
            self._remove_training(out)
        return run

    def training(self, arm: Arm, seed: int) -> Path:
        """Returns where a run's training and its trained model lie."""
        return self.folder / "training" / f"{arm.name}-{seed}"

    def _lacks_downstream(self, arm: Arm, run: Run) -> bool:
        stage = self.plan.stage(arm.stage)
        asked = self.downstream and stage.downstream and run.seed == stage.seeds[0]
        return asked and not run.downstream

    def _remove_training(self, out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.with_suffix(".key").unlink(missing_ok=True)

    def convert(self, arm: Arm, seed: int) -> Path:
        """Converts for a resolved arm, unless another arm or run did; returns the checkpoint.

        A calibration text of its own is named from the plan's folder.
        """
        from ouroboros.conversion.convert import convert
        from runtime.files.destinations import CHECKPOINT, kind_of

        options = self.conversion(arm, seed)
        out = self.folder / "converted" / digest(options, self.texts.sha256)[:16]
        if kind_of(out) != CHECKPOINT:
            out.parent.mkdir(parents=True, exist_ok=True)
            shown = ", ".join(f"{name} {value}" for name, value in options.items())
            self.say(f"converting: {shown}")
            if "calibration" in options:
                options["calibration"] = self.plan.path.parent / options["calibration"]
            convert(self.texts.model, out, report=self.say, **options)
        return out


def loops(arm: Arm) -> bool:
    """Says whether a resolved arm loops anything."""
    return str(arm.convert.get("recurrent")) != "none"


def _exactness(options: TrainOptions) -> dict[str, Any]:
    """What a training depends on; where its teacher lies is no matter."""
    exact = options.exactness()
    return {**exact, "teacher": bool(exact["teacher"])}


def _prefix(arm: Arm, seq_len: int) -> int:
    from ouroboros.evaluate import scoring_prefix

    return scoring_prefix(str(arm.convert.get("pooling", "causal")), seq_len)


def _best_loss(run: Run | None) -> float:
    assert run is not None  # looked for before
    return min(mean_heldout(texts) for texts in run.losses.values())


def _read_ranking(place: Path, basis: str) -> list[str] | None:
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return list(kept["ranked"]) if kept.get("basis") == basis else None


def _clear_other(out: Path, key: str) -> None:
    """Removes the training of another form of the same arm; the same form is gone on with."""
    if out.is_dir() and _read_key(out) != key:
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".key").write_text(key, encoding="utf-8")


def _key_of(made_of: Mapping[str, Any]) -> str:
    """A digest of what a run is made of; an option at its default leaves it as it is."""
    usual = _usual()
    training = {n: v for n, v in made_of["training"].items() if n not in usual or usual[n] != v}
    return digest({**made_of, "training": training})


def _usual() -> dict[str, Any]:
    from ouroboros.training.recipe import TrainOptions

    return dict(as_json(_exactness(TrainOptions(data=(Path(),)))))


def _read_key(out: Path) -> str:
    """What the training in a folder is made of: a digest."""
    mark = out.with_suffix(".key")
    return mark.read_text(encoding="utf-8") if mark.is_file() else ""


def _trainable(checkpoint: Path, options: TrainOptions) -> int:
    """Counts what a training trains, from the config alone."""
    import torch

    from ouroboros.checkpoint import read_config
    from ouroboros.model.modeling import OuroborosForCausalLM
    from ouroboros.training.adapters import mark_trained

    with torch.device("meta"):
        model = OuroborosForCausalLM(read_config(checkpoint))
        mark_trained(model, options)
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


def read_curve(
    history: tuple[Mapping[str, Any], ...], options: TrainOptions, a_step: int
) -> dict[int, list[tuple[int, float]]]:
    """Returns the mean held-out loss while training by depth: (tokens, loss), by tokens.

    Args:
        history: of a training.
        options: its own.
        a_step: tokens a train step.
    """
    from ouroboros.training.plots import EVAL_LOSS

    curve = {}
    for depth in options.scored_depths:
        key = EVAL_LOSS.format(depth=depth)
        found = {int(one["step"]): float(one[key]) for one in history if key in one}
        curve[depth] = [(step * a_step, loss) for step, loss in sorted(found.items())]
    return curve


def name_machine() -> str:
    """Says what a run was made on: the processor, its threads, and torch's version."""
    import torch

    from runtime.measure.speed import describe_machine

    machine = describe_machine(["torch"])
    versions, threads = machine["versions"], torch.get_num_threads()
    return f"{machine['processor']}, {threads} threads, torch {versions['torch']}"
