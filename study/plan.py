"""What is studied: `recipes/study.toml`, read and checked before anything is computed."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ouroboros.conversion.options import ConvertOptions
from ouroboros.training.recipe import TrainOptions, make_options, read_recipe

PLAN = Path(__file__).resolve().parents[1] / "recipes" / "study.toml"
GIVEN = frozenset({"data", "eval", "train_steps", "seed", "teacher", "state_cache"})
"""What the runner gives to every training, so that no recipe may."""


class StudyError(Exception):
    """The study can't be done as it is written; the message says what is wrong and the cure."""


@dataclass(frozen=True)
class Arm:
    """One form of a model and one way to train it.

    Attributes:
        name: of the arm.
        question: what it is there to answer.
        stage: which stage it belongs to.
        convert: options of `ouro convert`.
        recipe: a recipe of `ouro train`, a file beside the plan.
        best: which of the arms of `best_of` it takes up, by their held-out loss: 1 the best; 0: it
            is an arm of its own. `recipe` is then what is put behind that arm's recipe's name.
        best_of: a stage.
    """

    name: str
    question: str
    stage: str
    convert: Mapping[str, Any]
    recipe: str
    best: int = 0
    best_of: str = ""


@dataclass(frozen=True)
class Stage:
    """Arms that are run together: every arm at one seed before the next seed.

    Attributes:
        name: of the stage.
        seeds: of its runs.
        arms: in order.
        downstream: whether its first seed is scored on downstream tasks, which need lm-eval.
    """

    name: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    downstream: bool = False


@dataclass(frozen=True)
class Comparison:
    """A difference of two arms that the report states.

    Attributes:
        name: its key in study.json.
        arm: what is compared.
        minus: with what.
        claim: what it says where the loss is lower, as a part of a sentence.
        depth: of both; 0: the study's.
        minus_depth: of the second where it differs.
    """

    name: str
    arm: str
    minus: str
    claim: str
    depth: int = 0
    minus_depth: int = 0


@dataclass(frozen=True)
class Plan:
    """The whole study.

    Attributes:
        path: the file it was read from.
        tokens: that each arm is trained on.
        depth: at which arms are compared.
        depths: at which they are scored, where they have them.
        curve_depths: at which they are scored while they train.
        curve_points: how often, evenly, beside the start.
        tokens_per_s: taken for the speed until one was measured.
        seq_len: tokens of an evaluated window.
        windows: evaluated windows a text.
        downstream_examples: of each downstream task.
        prelude: layers of the plain model, that all arms are held against.
        layer: likewise, the one between.
        coda: likewise.
        stages: in order.
        comparisons: in order.
    """

    path: Path
    tokens: int
    depth: int
    depths: tuple[int, ...]
    curve_depths: tuple[int, ...]
    curve_points: int
    tokens_per_s: float
    seq_len: int
    windows: int
    downstream_examples: int
    prelude: int
    layer: int
    coda: int
    stages: tuple[Stage, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def arms(self) -> dict[str, Arm]:
        """All arms by name, in order."""
        return {arm.name: arm for stage in self.stages for arm in stage.arms}

    def stage(self, name: str) -> Stage:
        """Returns a stage by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    def runs(self) -> Iterator[tuple[Arm, int]]:
        """Yields every arm and seed in the order in which they are run."""
        for stage in self.stages:
            for seed in stage.seeds:
                for arm in stage.arms:
                    yield arm, seed

    def forms(self) -> dict[str, list[str]]:
        """Returns what arms are folded to, each form once: `looped` ones, and `unlooped`."""
        forms: dict[str, list[str]] = {"looped": [], "unlooped": []}
        for options in (
            ConvertOptions(**arm.convert) for arm in self.arms.values() if not arm.best
        ):
            looped = str(options.recurrent)
            kind, between = "looped", f"a loop over layer{'s' * ('-' in looped)} {looped}"
            if looped == "none":
                kind, between = "unlooped", "" if options.bridge == "none" else "map"
            parts = (str(options.prelude), between, str(options.coda))
            form = " + ".join(part for part in parts if part)
            if form not in forms[kind]:
                forms[kind].append(form)
        return forms

    def recipe_path(self, recipe: str) -> Path:
        """Returns the file of a recipe."""
        return self.path.parent / recipe

    def train_options(self, recipe: str, **given: Any) -> TrainOptions:
        """Returns the options of a training by a recipe.

        Args:
            recipe: its name in the plan.
            given: what no recipe says, `GIVEN` among it.

        Raises:
            StudyError: the recipe says what is the study's to say.
            TrainingError: as `make_options`.
        """
        path = self.recipe_path(recipe)
        if said := sorted(GIVEN & read_recipe(path).keys()):
            raise StudyError(f"{path} gives {said[0]}, which the study gives; take it out")
        return make_options(given, path)

    def distils(self, recipe: str) -> bool:
        """Says whether a recipe asks for a teacher: by naming the share of its loss."""
        return "distill" in read_recipe(self.recipe_path(recipe))


def read_plan(path: Path = PLAN) -> Plan:
    """Reads a study's plan.

    Raises:
        StudyError: it can't be read, has an unknown or lacks a needed key, or contradicts itself.
        TrainingError: a recipe is none.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"{path}: can't read the plan ({error})") from error
    _check_keys(content, {"study", "convert", "stage", "comparison"}, path, "")
    shared = dict(content.get("convert", {}))
    stages = tuple(_read_stage(entry, shared, path) for entry in content.get("stage", []))
    comparisons = tuple(
        _build(Comparison, entry, path, "comparison") for entry in content.get("comparison", [])
    )
    values = dict(content.get("study", {}))
    for name in ("depths", "curve_depths"):
        values[name] = tuple(values.get(name, ()))
    given = values | {"path": path, "stages": stages, "comparisons": comparisons}
    plan: Plan = _build(Plan, given, path, "study")
    _check_plan(plan)
    return plan


def _read_stage(entry: Mapping[str, Any], shared: Mapping[str, Any], path: Path) -> Stage:
    name = str(entry.get("name", ""))
    arms = []
    for one in entry.get("arm", []):
        own = dict(one.get("convert", {}))
        known = {field.name for field in dataclasses.fields(ConvertOptions)}
        _check_keys({**shared, **own}, known, path, f" of arm {one.get('name')!r}")
        convert = {} if one.get("best") else {**shared, **own}
        arms.append(_build(Arm, {**one, "convert": convert, "stage": name}, path, "arm"))
    values = {**entry, "seeds": tuple(entry.get("seeds", ())), "arms": tuple(arms)}
    values.pop("arm", None)
    stage: Stage = _build(Stage, values, path, "stage")
    return stage


def _build(kind: Any, values: Mapping[str, Any], path: Path, what: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    where = f" of {what} {values.get('name', '')!r}"
    _check_keys(values, fields, path, where)
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if lacking := [name for name in needed if name not in values]:
        raise StudyError(f"{path}: {lacking[0]}{where} is missing")
    return kind(**values)


def _check_keys(values: Iterable[str], known: Iterable[str], path: Path, where: str) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), 1)
            cure = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise StudyError(f"{path}: unknown key {name!r}{where}; {cure}")


def _check_plan(plan: Plan) -> None:
    """Refuses two arms of a name, what names nothing, and arms that are not to be compared."""
    names = [arm.name for stage in plan.stages for arm in stage.arms]
    for name in names:
        if names.count(name) > 1:
            raise StudyError(f"{plan.path}: two arms are called {name!r}")
    for one in plan.comparisons:
        for name in (one.arm, one.minus):
            if name not in names:
                raise StudyError(f"{plan.path}: {one.name} compares {name!r}, which is no arm")
        for depth in (one.depth, one.minus_depth):
            if depth and depth not in plan.depths:
                raise StudyError(
                    f"{plan.path}: {one.name} compares at depth {depth}, and depths are "
                    f"{', '.join(map(str, plan.depths))}"
                )
    if not plan.depths:
        raise StudyError(f"{plan.path}: depths of the study is missing")
    known = {stage.name: stage for stage in plan.stages}
    for stage in plan.stages:
        if not stage.seeds:
            raise StudyError(f"{plan.path}: seeds of stage {stage.name!r} is missing")
    windows: dict[tuple[int, int, int], str] = {}
    for arm in plan.arms.values():
        if arm.best:
            if arm.best_of not in known:
                raise StudyError(f"{plan.path}: best_of of {arm.name!r} is no stage")
            others = known[arm.best_of].arms
            if arm.best_of == arm.stage or any(one.best for one in others):
                raise StudyError(
                    f"{plan.path}: {arm.name!r} takes up the best of {arm.best_of!r}, which "
                    "takes up arms itself; name a stage whose arms all stand for themselves"
                )
            if arm.best > len(others):
                raise StudyError(
                    f"{plan.path}: best={arm.best} of {arm.name!r}, and {arm.best_of!r} has "
                    f"{len(others)} arms"
                )
            continue
        options = plan.train_options(arm.recipe, data=(Path(),), teacher=teacher_of(plan, arm))
        a_step = options.batch_size * options.grad_accum
        windows.setdefault((a_step, options.seq_len, options.eval_windows), arm.name)
    if len(windows) > 1:
        said = [
            f"{name!r} on {count} of {size}, scored on {scored}"
            for (count, size, scored), name in windows.items()
        ]
        raise StudyError(
            f"{plan.path}: arms train on unequal windows (number, tokens) an update or are scored "
            f"on unequal ones meanwhile, {' and '.join(said[:2])}; make their recipes the same in "
            "this"
        )


def teacher_of(plan: Plan, arm: Arm, teacher: str = "teacher") -> str:
    """Returns `teacher` where the arm's recipe distils, else nothing."""
    return teacher if plan.distils(arm.recipe) else ""
