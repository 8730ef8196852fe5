"""A whole evaluation on held-out text: one model, and those that it came from, by depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ouroboros.errors import DataError
from ouroboros.eval_options import DEPTHS, EvalOptions
from ouroboros.evaluate import (
    Evaluation,
    Row,
    evaluate_original,
    evaluate_scorer,
    require_finite,
    score_auto,
    score_windows,
    scoring_prefix,
)
from ouroboros.gap import Shortened
from ouroboros.model.halters import AUTO, check_threshold
from ouroboros.model.limits import check_ids, check_seq_len
from ouroboros.text.windows import cut_eval_texts

if TYPE_CHECKING:
    import numpy as np

    from ouroboros.model.configuration import OuroborosConfig

Advance = Callable[[int], None]


class Scored(Protocol):
    """A model to score, a checkpoint's or a bundle's seen alike.

    Attributes:
        name: "trained", or "converted" where it was never trained.
        config: has `prelude`, `coda`, `pooling`, `vocab_size` and `max_position_embeddings`.
        folded: how it was converted, which a bundle does not say: None there.
        max_depth: the largest depth it runs.
        tokenizer: called as transformers' are.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def config(self) -> Any: ...  # noqa: D102
    @property
    def folded(self) -> OuroborosConfig | None: ...  # noqa: D102
    @property
    def max_depth(self) -> int: ...  # noqa: D102
    @property
    def tokenizer(self) -> Any: ...  # noqa: D102

    def check_depth(self, depth: int | str) -> object:
        """Raises for a depth that it does not run, or "auto" where it can't choose."""
        ...

    def score(
        self, windows: np.ndarray, depth: int | None, *, prefix: int, advance: Advance
    ) -> float:
        """Returns the mean loss of int64 windows [n, seq], as `ouroboros.evaluate.score_windows`.

        Args:
            windows: token ids.
            depth: recurrences.
            prefix: predictions left out at the start of each window.
            advance: called with the number of windows done since the last call.
        """
        ...

    def score_auto(
        self, windows: np.ndarray, *, prefix: int, advance: Advance
    ) -> tuple[float, float]:
        """Returns loss and mean depth, as `ouroboros.evaluate.score_auto`."""
        ...


def check_depth(config: Any, depth: int | str) -> object:
    """As `OuroborosConfig.check_depth`; "auto" asks for a halter."""
    if depth == AUTO:
        return check_threshold(config.halt_threshold, config)
    return config.check_depth(depth)


@dataclass(frozen=True)
class ScoredCheckpoint:
    """A checkpoint as `Scored` has it.

    Attributes:
        model: the loaded model.
        tokenizer: its own.
    """

    model: Any
    tokenizer: Any

    @classmethod
    def open(cls, path: Path) -> ScoredCheckpoint:
        """Loads a checkpoint.

        Args:
            path: its directory.

        Raises:
            CheckpointError: it is not whole or has no tokenizer.
        """
        from ouroboros.checkpoint import load_with_tokenizer

        return cls(*load_with_tokenizer(path))

    @property
    def name(self) -> str:
        """As `Scored` has it."""
        return "trained" if self.config.trained_depths else "converted"

    @property
    def config(self) -> Any:
        """The model's `OuroborosConfig`."""
        return self.model.config

    @property
    def folded(self) -> OuroborosConfig | None:
        """As `Scored` has it."""
        config: OuroborosConfig = self.model.config
        return config

    @property
    def max_depth(self) -> int:
        """The largest depth it runs."""
        return int(self.config.max_depth)

    def check_depth(self, depth: int | str) -> object:
        """As the function of this name."""
        return check_depth(self.config, depth)

    def score(
        self, windows: np.ndarray, depth: int | None, *, prefix: int, advance: Advance
    ) -> float:
        """As `ouroboros.evaluate.score_windows`."""
        return score_windows(self.model, windows, depth, prefix, advance=advance)

    def score_auto(
        self, windows: np.ndarray, *, prefix: int, advance: Advance
    ) -> tuple[float, float]:
        """As `ouroboros.evaluate.score_auto`."""
        return score_auto(self.model, windows, prefix, advance=advance)


@contextmanager
def no_bar(total: int) -> Iterator[Advance]:
    """Shows nothing of what is counted, `total` in all."""
    yield lambda count: None


def evaluate_texts(
    main: Scored,
    texts: Mapping[Path, str],
    depths: Sequence[int | str] = (),
    options: EvalOptions | None = None,
    *,
    converted: Scored | None = None,
    original: str | None = None,
    plain: Shortened | None = None,
    bar: Callable[[int], AbstractContextManager[Advance]] = no_bar,
) -> Evaluation:
    """Scores held-out files by depth, every row on the same windows: the first of each file.

    Args:
        main: the model.
        texts: held-out ones, from `ouroboros.text.windows.read_eval_texts`.
        depths: recurrences; none: those of DEPTHS that the model runs. With "auto" among them, the
            first half of each window is the prompt on which it chooses, and every row is scored on
            the second.
        options: how many windows of each file, and of which size; None for the defaults.
        converted: the untrained model; its rows are added where it runs the depth.
        original: the source it was converted from; adds `evaluate_original`'s rows.
        plain: the layers that its shortened row keeps; None: those that the model keeps. A bundle
            does not say which layer it loops: without `converted` there is no such row then.
        bar: opened with the number of windows to be scored; gives what counts them.

    Raises:
        DataError: a text is too short, the model can't read it, or `converted` is no earlier
            state of the same model.
        ConfigError: a depth that the checkpoint does not run, or layers that the original has not.
        EngineError: one that the bundle does not run.
        CheckpointError: a loss is not finite, or `original` can't be loaded.
    """
    if not texts:
        raise DataError("no held-out text", "give at least one file")
    for one in depths:
        main.check_depth(one)
    depths = depths or [one for one in DEPTHS if one <= main.max_depth]
    options = options or EvalOptions()
    seq_len = options.seq_len
    check_seq_len(seq_len, main.config.max_position_embeddings)
    cut = cut_eval_texts(texts, main.tokenizer, seq_len, options.windows)
    for name, array in cut.items():
        check_ids(name, array, main.config.vocab_size)
    auto = AUTO in depths
    prefix = seq_len // 2 if auto else scoring_prefix(main.config.pooling, seq_len)
    fixed = [one for one in depths if isinstance(one, int)]
    usable: list[int] = []
    if converted is not None:
        require_same_split(converted, main)
        usable = [one for one in fixed if one <= converted.max_depth]
    counts = {name: len(array) for name, array in cut.items()}
    folded = next((one.folded for one in (main, converted) if one and one.folded), None)
    models = len(depths) + len(usable)
    plain = plain or (Shortened.of(folded) if folded else None)
    models += 0 if original is None else 1 if plain is None else 2
    rows: list[Row] = []
    with bar(models * sum(counts.values())) as advance:
        if original is not None:
            rows += evaluate_original(
                original, main.config.vocab_size, plain, cut, prefix, advance=advance
            )
        if converted is not None:
            rows += _score("converted", converted, cut, usable, prefix, advance)
        rows += _score(main.name, main, cut, fixed, prefix, advance)
        if auto:
            rows.append(_score_auto(main, cut, prefix, advance))
    return Evaluation(tuple(rows), seq_len, counts, prefix, plain if original else None)


def _score(
    name: str,
    model: Scored,
    windows: Mapping[str, np.ndarray],
    depths: Sequence[int],
    prefix: int,
    advance: Advance,
) -> list[Row]:
    return evaluate_scorer(
        name, partial(model.score, prefix=prefix, advance=advance), windows, depths
    )


def _score_auto(
    model: Scored, windows: Mapping[str, np.ndarray], prefix: int, advance: Advance
) -> Row:
    found = {
        text: model.score_auto(array, prefix=prefix, advance=advance)
        for text, array in windows.items()
    }
    depth = sum(depth for _, depth in found.values()) / len(found)
    row = Row(model.name, AUTO, {text: loss for text, (loss, _) in found.items()}, depth)
    require_finite(row)
    return row


def require_same_split(other: Scored, main: Scored) -> None:
    """Refuses to set side by side two models of which one can't be the other before training.

    Args:
        other: the untrained model.
        main: the model that is scored.

    Raises:
        DataError: their vocabulary, pooling, prelude or coda differ.
    """
    for name in ("vocab_size", "pooling", "prelude", "coda"):
        ours, theirs = getattr(main.config, name), getattr(other.config, name)
        if ours != theirs:
            raise DataError(
                f"the untrained checkpoint has {name} {theirs}, the model {ours}",
                "give the checkpoint that it was trained from",
            )
