"""What the study computes: conversions, baselines, trained and scored runs; each once."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.packages import FetchError
from demo.stages import source_hash
from study.plan import Arm, Plan, StudyError
from study.records import (
    LIKE,
    Baseline,
    Losses,
    Run,
    digest,
    mean_heldout,
    read_run,
    write_json,
    write_run,
)
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
        folder: where everything is left.
        tokens: each arm is trained on, about.
        say: called with a line of progress now and then.
        console: shows a training's progress; None shows nothing.
        keep: whether trained checkpoints stay.
    """

    plan: Plan
    texts: Texts
    folder: Path
    tokens: int
    say: Callable[[str], None] = print
    console: Console | None = None
    keep: bool = False

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
        found = {name: run.key for name, run in runs.items() if run is not None}
        basis = digest(sorted([*name, key] for name, key in found.items()))
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

    def key(self, arm: Arm, seed: int) -> str:
        """Returns the digest of all that a resolved arm's run depends on, but the code."""
        plan = self.plan
        scoring = [plan.seq_len, plan.windows, plan.depths, plan.curve_depths, plan.curve_points]
        options = self.train_options(arm, seed)
        scoring += [options.eval_windows, options.state_dtype]
        exact = options.exactness()
        exact["teacher"] = bool(exact["teacher"])  # where it lies is no matter
        return digest(self.conversion(arm, seed), exact, self.texts.sha256, scoring)

    def finished(self, arm: Arm, seed: int) -> Run | None:
        """Returns the record of a run of an arm as it is now in the plan, if there is one."""
        run = read_run(self.folder, arm.name, seed)
        if run is None:
            return None
        try:
            resolved = self.resolve(arm)
        except StudyError:
            return None
        return run if run.key == self.key(resolved, seed) else None

    def run(self, arm: Arm, seed: int) -> Run:
        """Converts, trains and scores an arm at a seed, going on where a killed run stopped.

        Raises:
            StudyError: it takes up the best of a stage that is not finished.
            OuroError: as conversion, training and evaluation.
        """
        from ouroboros.training.run import train

        resolved = self.resolve(arm)
        key, options = self.key(resolved, seed), self.train_options(resolved, seed)
        converted = self.convert(resolved, seed)
        out = self.folder / "training" / f"{arm.name}-{seed}"
        _clear_other(out, key)
        report = train(converted, out, options, resume=True, console=self.console)
        began = time.perf_counter()
        losses, facts = self.score(out)
        a_step = options.batch_size * options.grad_accum * options.seq_len
        trainable = _trainable(out, options)
        run = Run(
            arm=arm.name,
            seed=seed,
            key=key,
            stands_for=self.chosen(arm).name,
            convert=self.conversion(resolved, seed),
            recipe=resolved.recipe,
            coda=options.train_coda,
            tokens=report.train_steps * a_step,
            train_steps=report.train_steps,
            trainable=trainable,
            parameters=facts["parameters"],
            prefix=facts["prefix"],
            losses=losses,
            curve_prefix=_prefix(resolved, options.seq_len),
            curve=read_curve(report.history, options, a_step),
            tokens_per_s=report.tokens_per_s,
            train_s=report.seconds,
            score_s=time.perf_counter() - began,
            machine=describe_machine(),
            code=source_hash("ouroboros")[:12],
        )
        if self.plan.stage(arm.stage).downstream and seed == self.plan.stage(arm.stage).seeds[0]:
            run = dataclasses.replace(run, downstream=self._score_downstream(out))
        self.baseline(run.prefix, self.plan.seq_len, self.plan.windows)
        self.baseline(run.curve_prefix, options.seq_len, options.eval_windows)
        write_run(self.folder, run)
        if not self.keep:
            shutil.rmtree(out)
            out.with_suffix(".key").unlink(missing_ok=True)
        gc.collect()
        return run

    def _score_downstream(self, checkpoint: Path) -> dict[str, dict[str, float]]:
        """Returns the accuracies by task; none where the questions can't be had."""
        from study.downstream import score_downstream

        examples = self.plan.downstream_examples
        try:
            return score_downstream(checkpoint, self.folder / "tasks", examples, self.say)
        except FetchError as error:
            self.say(f"no downstream tasks: {error}")
            return {}

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

    def score(self, checkpoint: Path) -> tuple[Losses, dict[str, int]]:
        """Scores a checkpoint on every text at every depth of the plan that it has.

        Returns:
            Losses by depth and text, and `prefix` and `parameters`.
        """
        from ouroboros.held_out import ScoredCheckpoint, evaluate_texts

        plan = self.plan
        scored = ScoredCheckpoint.open(checkpoint)
        depths = [depth for depth in plan.depths if depth <= scored.max_depth]
        found = evaluate_texts(
            scored, list(self.paths().values()), depths, seq_len=plan.seq_len, windows=plan.windows
        )
        losses = {int(row.depth or 1): self.by_text(row.texts) for row in found.rows}
        parameters = sum(one.numel() for one in scored.model.parameters())
        return losses, {"prefix": found.prefix, "parameters": parameters}

    def paths(self) -> dict[str, Path]:
        """The scored texts by name."""
        return {**self.texts.heldout, LIKE: self.texts.like}

    def by_text(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Names losses, which are by the stem of a file, as `paths` does."""
        from ouroboros.text.corpus import text_name

        return {name: losses[text_name(path)] for name, path in self.paths().items()}

    def baseline(self, prefix: int, seq_len: int, windows: int) -> Baseline:
        """Scores the original, whole and plainly shortened, unless that was done before.

        Args:
            prefix: predictions left out of each window.
            seq_len: tokens a window.
            windows: of each text.
        """
        plan = self.plan
        split = [plan.prelude, plan.layer, plan.coda]
        place = digest(self.texts.sha256, split, prefix, seq_len, windows)[:16]
        path = self.folder / "baseline" / f"{place}.json"
        if path.is_file():
            return Baseline(**json.loads(path.read_text(encoding="utf-8")))
        from ouroboros.evaluate import evaluate_model
        from ouroboros.source.locate import drop_middle, load_source
        from ouroboros.text.windows import load_eval_windows

        self.say(f"scoring the original on windows of {seq_len} tokens")
        source = load_source(self.texts.model)
        paths = list(self.paths().values())
        cut = load_eval_windows(paths, source.tokenizer, seq_len, windows)
        short = drop_middle(source.model, plan.prelude, plan.coda, [plan.layer])
        full, plain = (
            self.by_text(evaluate_model(name, model, cut, [None], prefix)[0].texts)
            for name, model in (("full", source.model), ("plain", short))
        )
        write_json(path, {"full": full, "plain": plain})
        return Baseline(full, plain)


def loops(arm: Arm) -> bool:
    """Says whether a resolved arm loops anything."""
    return str(arm.convert.get("recurrent")) != "none"


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
    mark = out.with_suffix(".key")
    before = mark.read_text(encoding="utf-8") if mark.is_file() else ""
    if out.is_dir() and before != key:
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(key, encoding="utf-8")


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


def describe_machine() -> str:
    """Says what a run was made on: the processor, its threads, and torch's version."""
    import torch

    from bench.measure import describe_machine as describe

    machine = describe()
    versions, threads = machine["versions"], torch.get_num_threads()
    return f"{machine['processor']}, {threads} threads, torch {versions['torch']}"
