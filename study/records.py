"""What stays of a run: one JSON file, by which it is known to be finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ouroboros.gap import share_of_gap

LIKE = "like the training text"
"""The name, among the losses by text, of that of text like the training text."""

Losses = dict[int, dict[str, float]]
"""Loss in nats a token by depth and text."""

WindowLosses = dict[int, dict[str, list[float]]]
"""Likewise, of each window by itself."""


@dataclass(frozen=True)
class Run:
    """An arm at a seed, trained and scored.

    Attributes:
        arm: its name.
        seed: of the training, and of what starts at random.
        made_of: all that the result depends on but the code: `conversion`, `training`, `texts` and
            `scoring`.
        stands_for: the arm taken up, where the plan names none.
        convert: options of the conversion.
        recipe: name of the recipe.
        coda: what of the coda trained, as `--train-coda` has it.
        tokens: trained on.
        train_steps: updates.
        trainable: parameters that trained.
        parameters: of the model.
        prefix: predictions left out of each window, of the loss and of the baseline it is held
            against; above 0 with `mean` pooling only.
        by_window: losses by depth and text, `LIKE` among them, of each window.
        curve_prefix: as `prefix`, while training.
        curve: mean held-out loss while training by depth: (tokens, loss).
        tokens_per_s: of the training.
        train_s: seconds of the training, in the process that ended it.
        score_s: of the scoring.
        machine: what it was made on.
        code: digest of the package `ouroboros`.
        downstream: accuracy by task, where it was scored: value, standard error and examples.
    """

    arm: str
    seed: int
    made_of: dict[str, Any]
    stands_for: str
    convert: dict[str, Any]
    recipe: str
    coda: str
    tokens: int
    train_steps: int
    trainable: int
    parameters: int
    prefix: int
    by_window: WindowLosses
    curve_prefix: int
    curve: dict[int, list[tuple[int, float]]]
    tokens_per_s: float
    train_s: float
    score_s: float
    machine: str
    code: str
    downstream: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def losses(self) -> Losses:
        """Losses by depth and text, every window counted once."""
        return {
            depth: {text: sum(ones) / len(ones) for text, ones in texts.items()}
            for depth, texts in self.by_window.items()
        }

    def heldout(self, depth: int) -> float:
        """Returns the mean over the held-out texts, each counted once."""
        return mean_heldout(self.losses[depth])


@dataclass(frozen=True)
class Baseline:
    """The original whole and plainly shortened, on the same windows as the runs.

    Attributes:
        full: loss by text, of all layers.
        plain: of prelude, one layer between and coda, nothing trained.
    """

    full: dict[str, float]
    plain: dict[str, float]

    def share(self, loss: float, text: str | None = None) -> float:
        """Returns the share of the gap between plain and full that a loss closes.

        Args:
            loss: of one text, or the mean of the held-out ones.
            text: which; None for the mean.
        """
        plain = mean_heldout(self.plain) if text is None else self.plain[text]
        full = mean_heldout(self.full) if text is None else self.full[text]
        return share_of_gap(loss, plain, full)


def mean_heldout(losses: Mapping[str, float]) -> float:
    """Returns the mean of the held-out texts' losses."""
    kinds = [loss for text, loss in losses.items() if text != LIKE]
    return sum(kinds) / len(kinds)


def digest(*values: Any) -> str:
    """Returns a hash of JSON values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(values: Any) -> Any:
    """Returns values as they are after they were written as JSON and read again."""
    return json.loads(json.dumps(values, default=str))


def still_holds(
    recorded: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> bool:
    """Says whether a run that was made of one thing is what would be made of another.

    An option of the training that one of both does not name yet counts as its default, so that an
    option which comes later leaves what was recorded as it is.

    Args:
        recorded: a run's `made_of`.
        now: likewise, of the plan as it is.
        defaults: of the training's options.
    """
    before, after = ({**defaults, **one.get("training", {})} for one in (recorded, now))
    parts = (recorded.keys() | now.keys()) - {"training"}
    return before == after and all(recorded.get(part) == now.get(part) for part in parts)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".new")
    staged.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    staged.replace(path)


def write_run(results: Path, run: Run) -> None:
    """Writes a run's record."""
    write_json(run_path(results, run.arm, run.seed), asdict(run))


def read_run(results: Path, arm: str, seed: int) -> Run | None:
    """Reads a run's record; None where there is none that can be read."""
    try:
        values = json.loads(run_path(results, arm, seed).read_text(encoding="utf-8"))
        return run_from_json(values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run_from_json(values: Mapping[str, Any]) -> Run:
    """Makes a run of its JSON values, in which depths are texts."""
    by_window = {int(depth): dict(texts) for depth, texts in values["by_window"].items()}
    curve = {
        int(depth): [(int(tokens), float(loss)) for tokens, loss in points]
        for depth, points in values["curve"].items()
    }
    return Run(**{**values, "by_window": by_window, "curve": curve})


def run_path(results: Path, arm: str, seed: int) -> Path:
    """Returns where a run's record lies."""
    return results / "runs" / f"{arm}-{seed}.json"
