"""Held-out loss: the mean next-token loss of a model over windows of text, by depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ouroboros.errors import CheckpointError, DataError
from ouroboros.gap import Shortened, share_of_gap

if TYPE_CHECKING:
    import numpy as np

    from ouroboros.model.modeling import OuroborosForCausalLM

BATCH = 2


FULL, DROPPED = "full", "dropped"
"""Rows of the original, whole and plainly shortened: shares of the gap lie between them."""


@dataclass(frozen=True)
class Row:
    """One model at one depth.

    Attributes:
        model: what it is: trained, converted, full or dropped.
        depth: recurrences; "auto" where each window chose its own; None for a model without a
            loop.
        texts: mean next-token loss by text, nats a token.
        mean_depth: of the depths that were chosen; None where none was.
    """

    model: str
    depth: int | str | None
    texts: dict[str, float]
    mean_depth: float | None = None

    @property
    def mean(self) -> float:
        """The mean of the texts' losses, each text counted once."""
        return sum(self.texts.values()) / len(self.texts)

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss; infinite where that overflows."""
        return math.exp(self.mean) if self.mean < 700 else math.inf

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON values."""
        return {
            "model": self.model,
            "depth": self.depth,
            **({} if self.mean_depth is None else {"mean_depth": self.mean_depth}),
            "mean": self.mean,
            # JSON has no infinity.
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
            "texts": dict(self.texts),
        }


@dataclass(frozen=True)
class Evaluation:
    """Rows over the same windows.

    Attributes:
        rows: one a model and depth.
        seq_len: tokens a window.
        windows: windows scored, by text.
        prefix: predictions left out at the start of every window.
        shortened: the layers of the row `dropped`; None where there is none.
    """

    rows: tuple[Row, ...]
    seq_len: int
    windows: dict[str, int]
    prefix: int
    shortened: Shortened | None = None

    def share(self, row: Row) -> float | None:
        """Returns the share of the gap between the shortened and the whole original that it closes.

        It is (dropped - row) / (dropped - full), of the mean losses; None where one of the two is
        missing, or the shortened one is no worse than the whole.
        """
        ends = {one.model: one.mean for one in self.rows if one.model in (FULL, DROPPED)}
        if len(ends) < 2 or ends[DROPPED] <= ends[FULL]:
            return None
        return share_of_gap(row.mean, ends[DROPPED], ends[FULL])

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        rows = [(row.to_json(), self.share(row)) for row in self.rows]
        plain = {} if self.shortened is None else {"shortened": str(self.shortened)}
        return {
            "rows": [row if share is None else {**row, "share": share} for row, share in rows],
            **plain,
            "seq_len": self.seq_len,
            "windows": dict(self.windows),
            "prefix": self.prefix,
        }


def scoring_prefix(pooling: str, seq_len: int) -> int:
    """Returns how many predictions of a window are left out so that none sees its own target.

    With `mean` pooling a position reads a mean over later ones. Such a model is scored as it
    generates: the mean is frozen on the first half of the window, the loss is taken on the rest.
    Other poolings are causal, and every position counts.
    """
    return seq_len // 2 if pooling == "mean" else 0


def score_windows(
    model: Any,
    windows: np.ndarray,
    depth: int | None = None,
    prefix: int = 0,
    batch: int = BATCH,
    advance: Callable[[int], None] | None = None,
) -> float:
    """Returns the mean next-token loss, nats a predicted token: the mean of `score_each`."""
    losses = score_each(model, windows, depth, prefix, batch, advance)
    return sum(losses) / len(losses)


def score_each(
    model: Any,
    windows: np.ndarray,
    depth: int | None = None,
    prefix: int = 0,
    batch: int = BATCH,
    advance: Callable[[int], None] | None = None,
) -> list[float]:
    """Returns each window's mean next-token loss, nats a predicted token, computed in float32.

    Args:
        model: an Ouroboros model or any Hugging Face causal language model.
        windows: int64 [windows, seq], each scored on its own.
        depth: recurrences; None for a model without a loop.
        prefix: predictions left out at the start of each window: tokens prefix+1.. are scored.
            An Ouroboros model with `mean` pooling has the prefix's mean frozen in its cache.
        batch: windows fed together.
        advance: called after each batch with the number of its windows.

    Raises:
        DataError: The windows or the prefix leave nothing to predict, or a model with `mean`
            pooling is given no prefix.
    """
    if windows.ndim != 2 or not len(windows) or not 0 <= prefix < windows.shape[1] - 1:
        raise DataError(
            f"windows of shape {list(windows.shape)} with a prefix of {prefix} leave nothing to "
            "predict",
            "give windows of at least prefix + 2 tokens",
        )
    import torch
    from torch.nn.functional import cross_entropy

    from ouroboros.model.cache import CACHE
    from ouroboros.model.modeling import OuroborosForCausalLM

    looped = isinstance(model, OuroborosForCausalLM)
    frozen_mean = looped and model.config.pooling == "mean"
    if frozen_mean and prefix == 0:
        raise DataError("a model with mean pooling is scored after a prefix", "give prefix >= 1")
    device = next(model.parameters()).device
    options = {"depth": depth} if looped else {}
    was_training = model.training
    model.eval()
    losses: list[float] = []
    with torch.no_grad():
        for first in range(0, len(windows), batch):
            ids = torch.from_numpy(windows[first : first + batch]).to(device)
            if frozen_mean:
                head = model(input_ids=ids[:, :prefix], use_cache=True, logits_to_keep=1, **options)
                tail = model(input_ids=ids[:, prefix:], past_key_values=head[CACHE], **options)
                logits = tail.logits[:, :-1]
            else:
                logits = model(input_ids=ids, use_cache=False, **options).logits[:, prefix:-1]
            for row, target in zip(logits, ids[:, prefix + 1 :], strict=True):
                total = float(cross_entropy(row.float(), target, reduction="sum"))
                losses.append(total / len(target))
            if advance is not None:
                advance(len(ids))
    model.train(was_training)
    return losses


def evaluate_model(
    name: str,
    model: Any,
    windows: Mapping[str, np.ndarray],
    depths: Sequence[int | None],
    prefix: int = 0,
    report: Callable[[Row], None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[Row]:
    """Scores a model on every text at every depth; `report` gets each row as it is done.

    `advance` is told of windows done, as by `score_windows`.

    Raises:
        CheckpointError: A loss is not finite.
    """

    def score(array: np.ndarray, depth: int | None) -> float:
        return score_windows(model, array, depth, prefix, advance=advance)

    return evaluate_scorer(name, score, windows, depths, report)


def score_auto(
    model: OuroborosForCausalLM,
    windows: np.ndarray,
    prefix: int,
    halt_threshold: float | None = None,
    batch: int = BATCH,
    advance: Callable[[int], None] | None = None,
) -> tuple[float, float]:
    """As `score_windows`, each window at the depth that it chooses on its prefix.

    Args:
        model: one with a halter.
        windows: int64 [windows, seq].
        prefix: tokens at the start of each window that are its prompt, 1 at least.
        halt_threshold: None takes the config's.
        batch: windows fed together.
        advance: called after each batch with the number of its windows.

    Returns:
        The mean loss of what follows the prompts, and the mean depth.

    Raises:
        DataError: the windows or the prefix leave nothing to choose on or to predict.
        ConfigError: the model has no halter.
    """
    if windows.ndim != 2 or not len(windows) or not 1 <= prefix < windows.shape[1] - 1:
        raise DataError(
            f"windows of shape {list(windows.shape)} with a prompt of {prefix} leave nothing to "
            "choose on or to predict",
            "give a prompt of at least 1 token and windows of at least 2 more",
        )
    import torch
    from torch.nn.functional import cross_entropy

    from ouroboros.model.cache import CACHE

    config, device = model.config, next(model.parameters()).device
    threshold = config.halt_threshold if halt_threshold is None else halt_threshold
    was_training = model.training
    model.eval()
    total, steps = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(windows), batch):
            ids = torch.from_numpy(windows[first : first + batch]).to(device)
            head = model(
                input_ids=ids[:, :prefix],
                use_cache=True,
                logits_to_keep=1,
                depth=config.halt_depth or None,
                halt_threshold=threshold,
            )
            tail = model(
                input_ids=ids[:, prefix:], past_key_values=head[CACHE], depth=head.depth_used
            )
            steps += int(head.depth_used.sum())
            for row, target in zip(tail.logits[:, :-1], ids[:, prefix + 1 :], strict=True):
                total += float(cross_entropy(row.float(), target, reduction="sum"))
            if advance is not None:
                advance(len(ids))
    model.train(was_training)
    return total / (len(windows) * (windows.shape[1] - 1 - prefix)), steps / len(windows)


def evaluate_scorer(
    name: str,
    score: Callable[[np.ndarray, int | None], float],
    windows: Mapping[str, np.ndarray],
    depths: Sequence[int | None],
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """As `evaluate_model`, for anything that gives a loss for windows at a depth."""
    rows: list[Row] = []
    for depth in depths:
        row = Row(name, depth, {text: score(array, depth) for text, array in windows.items()})
        require_finite(row)
        rows.append(row)
        if report is not None:
            report(row)
    return rows


def require_finite(row: Row) -> None:
    """Refuses a row with a loss that is no finite number.

    Raises:
        CheckpointError: naming the text.
    """
    for text, loss in row.texts.items():
        if not math.isfinite(loss):
            at = "" if row.depth is None else f" at depth {row.depth}"
            raise CheckpointError(
                f"the loss of the {row.model} model on {text!r} is {loss}{at}: its weights are "
                "too large or damaged",
                "train it again with a lower --learning-rate",
            )


def evaluate_original(
    source: str,
    vocab_size: int,
    shortened: Shortened | None,
    windows: Mapping[str, np.ndarray],
    prefix: int = 0,
    report: Callable[[Row], None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[Row]:
    """Scores the model that a checkpoint or bundle came from, whole and plainly shortened.

    The shortened one runs each of its layers once, untrained: the start the paper compares with.

    Args:
        source: hub id, local directory or .gguf file.
        vocab_size: of the converted model.
        shortened: the layers that the shortened one keeps; None: there is none.
        windows: int64 [windows, seq] by text.
        prefix: as for `score_windows`.
        report: gets each row as it is done.
        advance: is told of windows done, as by `score_windows`.

    Raises:
        CheckpointError: The source can't be loaded.
        ConfigError: It has not the layers that are to be kept.
        DataError: The windows were cut with another vocabulary.
    """
    from ouroboros.source.locate import drop_middle, load_source

    original = load_source(source)
    tokens = original.model.config.vocab_size
    if tokens != vocab_size:
        raise DataError(
            f"{source} has {tokens} tokens, the converted model {vocab_size}: not the one that it "
            "was converted from",
            "give that one to --original",
        )
    if shortened is not None:
        shortened.check(original.model.config.num_hidden_layers)
    rows = evaluate_model(FULL, original.model, windows, [None], prefix, report, advance)
    if shortened is None:
        return rows
    dropped = drop_middle(original.model, shortened.prelude, shortened.coda, shortened.looped)
    return rows + evaluate_model(DROPPED, dropped, windows, [None], prefix, report, advance)
