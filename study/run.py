"""Runs the study: `python -m study.run`, for hours; what is finished is skipped.

A killed run goes on where it was saved. What was measured is left in study/results/, to be kept
under version control, so that a study of many sittings may change machines; what is large and can
be made anew in build/study/; the report, written after every run, in docs/study.md and
docs/study.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.packages import FetchError
from demo.stages import ROOT, DemoError, say_heading
from runtime.errors import OuroError
from study.downstream import require_lm_eval
from study.plan import PLAN, Arm, Plan, StudyError, read_plan
from study.records import Run
from study.report import write_report
from study.texts import get_texts, keep_texts, known_texts
from study.work import Study

FOLDER = ROOT / "build" / "study"
RESULTS = ROOT / "study" / "results"
DOCS = ROOT / "docs"


def run_study(study: Study, out: Path, only: Sequence[str] = ()) -> dict[str, str]:
    """Runs what is not finished, in the plan's order, and writes the report after every run.

    A run that fails is told of and left for another time; the others go on.

    Args:
        study: what, on what and where.
        out: where study.md and study.json go.
        only: names of arms to run; none: all.

    Returns:
        Why a run failed, by its name and seed.

    Raises:
        StudyError: there is no such arm.
    """
    failed: dict[str, str] = {}
    todo = chosen_runs(study.plan, only)
    for number, (arm, seed) in enumerate(todo, start=1):
        say_heading(f"{number}/{len(todo)} {arm.name}, seed {seed}: {arm.question}")
        if run := study.finished(arm, seed):
            study.say(f"done before, in {(run.train_s + run.score_s) / 60:.1f} minutes; skipped")
            study.make_up(arm, run)
            continue
        try:
            run = study.run(arm, seed)
        except Exception as error:  # whatever it is, hours of other runs do not hang on it
            failed[f"{arm.name}-{seed}"] = str(error) or type(error).__name__
            study.say(f"failed: {failed[f'{arm.name}-{seed}']}")
            continue
        shown = ", ".join(f"{run.heldout(depth):.3f} at depth {depth}" for depth in run.losses)
        study.say(f"held-out loss {shown}; {run.tokens_per_s:.0f} tokens/s")
        write_report(study, out, failed)
    write_report(study, out, failed)
    return failed


def chosen_runs(plan: Plan, only: Sequence[str]) -> list[tuple[Arm, int]]:
    """Returns arms and seeds in order.

    Args:
        plan: of the study.
        only: names of arms; none: all.

    Raises:
        StudyError: there is no such arm.
    """
    for name in only:
        if name not in plan.arms:
            raise StudyError(f"no arm is called {name!r}; there are {', '.join(plan.arms)}")
    return [(arm, seed) for arm, seed in plan.runs() if not only or arm.name in only]


def list_runs(study: Study, only: Sequence[str] = ()) -> str:
    """Returns a table of the runs: whether they are finished, and how long they take.

    The time of one that is not is that of the tokens at the speed of the runs finished with the
    same recipe, else of all, else of the plan; and of scoring as it took them.

    Raises:
        StudyError: there is no such arm.
    """
    runs = [(arm, seed, study.finished(arm, seed)) for arm, seed in chosen_runs(study.plan, only)]
    finished = [run for _, _, run in runs if run is not None]
    width = max(len(arm.name) for arm, _, _ in runs)
    lines = [f"{'arm':{width}}  seed  state    minutes  tokens/s"]
    left = 0.0
    for arm, seed, run in runs:
        if run is not None:
            minutes, speed, state = (run.train_s + run.score_s) / 60, run.tokens_per_s, "done"
        else:
            minutes, speed = _expect(study, arm, finished)
            started = study.training(arm, seed).is_dir()
            state = "started" if started else "to do"
            left += minutes
        lines.append(f"{arm.name:{width}}  {seed:4}  {state:7}  {minutes:7.1f}  {speed:8.0f}")
    lines.append(
        f"{len(finished)} of {len(runs)} runs are done; the others take about {left:.0f} minutes "
        f"at {study.tokens:,} tokens each"
    )
    return "\n".join(lines)


def _expect(study: Study, arm: Arm, finished: Sequence[Run]) -> tuple[float, float]:
    """Minutes that a run takes, and tokens a second."""
    like = [run for run in finished if run.recipe == arm.recipe and not arm.best] or finished
    speeds = [run.tokens_per_s for run in like if run.tokens_per_s > 0]
    speed = sum(speeds) / len(speeds) if speeds else study.plan.tokens_per_s
    scoring = sum(run.score_s for run in like) / len(like) if like else 0.0
    return (study.tokens / speed + scoring) / 60, speed


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m study.run", description=__doc__)
    parser.add_argument("--plan", type=Path, default=PLAN, help="what is studied")
    parser.add_argument("--only", action="append", default=[], metavar="ARM", help="repeatable")
    parser.add_argument("--tokens", type=int, default=0, help="of each arm; default: the plan's")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where all is left")
    parser.add_argument("--results", type=Path, default=RESULTS, help="what was measured")
    parser.add_argument("--out", type=Path, default=DOCS, help="where the report goes")
    parser.add_argument("--keep", action="store_true", help="keep trained checkpoints")
    parser.add_argument(
        "--no-downstream", action="store_true", help="no downstream tasks, which need lm-eval"
    )
    parser.add_argument("--list", action="store_true", help="only show the runs and their times")
    parser.add_argument("--report", action="store_true", help="only write the report anew")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status."""
    from rich.console import Console

    given = _parse(arguments)
    try:
        plan = read_plan(given.plan)
        if given.tokens < 0:
            raise StudyError(f"--tokens={given.tokens} is negative; give how many an arm trains on")
        kept = given.results == RESULTS or given.out == DOCS
        if kept and given.tokens not in (0, plan.tokens):
            raise StudyError(
                f"--tokens={given.tokens} would replace what was measured at {plan.tokens}; give "
                "folders of its own, --results and --out"
            )
        reads_only = given.list or given.report
        todo = chosen_runs(plan, given.only)
        scores = not (reads_only or given.no_downstream)
        if scores and any(plan.stage(arm.stage).downstream for arm, _ in todo):
            require_lm_eval()
        texts = known_texts(given.results) if reads_only else None
        texts = texts or get_texts(given.folder / "texts")
        study = Study(
            plan,
            texts,
            given.folder,
            given.results,
            given.tokens or plan.tokens,
            console=Console(),
            keep=given.keep,
            downstream=not given.no_downstream,
        )
        if given.list:
            print(list_runs(study, given.only))
            return 0
        if given.report:
            write_report(study, given.out, {})
            return 0
        keep_texts(given.results, texts)
        failed = run_study(study, given.out, given.only)
    except (StudyError, OuroError, DemoError, FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; give the same command to go on", file=sys.stderr)
        return 130
    for name, why in failed.items():
        print(f"error: {name} failed: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
