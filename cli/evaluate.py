"""`ouro eval`: held-out loss and perplexity by depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from ouroboros.evaluate import Row
    from runtime.engine import Engine

DEPTHS = (1, 4, 8, 16)


def evaluate(
    model: Annotated[Path, typer.Argument(help="a checkpoint or a bundle")],
    text: Annotated[
        list[Path] | None, typer.Option(help="held-out text, a column each; repeatable")
    ] = None,
    depth: Annotated[
        str | None, typer.Option(help="depths, like 1,8 or 1-16 (default 1,4,8,16)")
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            help="the model it was converted from: adds rows for it, whole and plainly shortened"
        ),
    ] = None,
    converted: Annotated[
        Path | None, typer.Option(help="the untrained checkpoint: adds its rows")
    ] = None,
    windows: Annotated[int, typer.Option(help="windows scored of each text")] = 8,
    seq_len: Annotated[int, typer.Option(help="tokens a window")] = 512,
    json: Annotated[Path | None, typer.Option(help="write the figures to this file")] = None,
) -> None:
    """Score held-out text: the mean next-token loss by depth, and its perplexity.

    Every row is scored on the same windows, the first of each text.

    Examples:
      ouro eval trained --text wiki.txt --text code.txt
      ouro eval trained --text wiki.txt --converted converted --original ./SmolLM2-135M
      ouro eval bundle --text wiki.txt --depth 1,8 --json scores.json
    """
    from rich import get_console

    from cli.bench import parse_numbers
    from cli.notices import plain_warnings
    from cli.output import require_writable, write_json
    from cli.screen import counting_bar, print_prose
    from ouroboros.errors import DataError
    from ouroboros.evaluate import Evaluation, evaluate_original, evaluate_scorer, scoring_prefix
    from ouroboros.model.limits import check_ids, check_seq_len
    from ouroboros.text.windows import load_eval_windows

    if not text:
        raise DataError("no held-out text", "give --text FILE")
    require_writable(json, [model, *text, converted, Path(original) if original else None])
    console = get_console()
    with plain_warnings():
        main = open_model(model)
        depths = parse_numbers(depth, "--depth") if depth else []
        for one in depths:
            main.check_depth(one)
        depths = depths or [one for one in DEPTHS if one <= main.max_depth]
        check_seq_len(seq_len, main.config.max_position_embeddings)
        cut = load_eval_windows(
            text, main.tokenizer, seq_len, windows, lambda line: typer.echo(line, err=True)
        )
        for name, array in cut.items():
            check_ids(name, array, main.config.vocab_size)
        prefix = scoring_prefix(main.pooling, seq_len)
        other, usable = None, []
        if converted is not None:
            other = open_model(converted)
            require_same_split(other, main)
            usable = [one for one in depths if one <= other.max_depth]
        count = len(depths) + len(usable) + (0 if original is None else 2)
        a_row = sum(len(array) for array in cut.values())
        rows: list[Row] = []
        with counting_bar("scoring windows", count * a_row) as advance:
            if original is not None:
                rows += evaluate_original(original, main.config, cut, prefix, advance=advance)
            if other is not None:
                rows += evaluate_scorer("converted", other.scorer(prefix, advance), cut, usable)
            rows += evaluate_scorer(main.name, main.scorer(prefix, advance), cut, depths)
    counts = {name: len(array) for name, array in cut.items()}
    evaluation = Evaluation(tuple(rows), seq_len, counts, prefix)
    print_rows(rows, console)
    scored = f"windows of {seq_len} tokens, " + ", ".join(f"{n} {c}" for c, n in counts.items())
    print_prose(scored, console, style="dim")
    if json is not None:
        write_json(json, evaluation.to_json())


@dataclass(frozen=True)
class Scored:
    """A checkpoint or a bundle, seen alike.

    Attributes:
        name: "trained", or "converted" where it was never trained.
        config: has `prelude`, `coda`, `vocab_size` and `max_position_embeddings`.
        pooling: of its Controller.
        max_depth: the largest depth it runs.
        tokenizer: called as transformers' are.
        check_depth: raises for a depth it does not run.
        scorer: gives, for a prefix, the loss of windows at a depth; what it is given besides is
            called with the number of windows done since.
    """

    name: str
    config: Any
    pooling: str
    max_depth: int
    tokenizer: Any
    check_depth: Callable[[int], object]
    scorer: Callable[[int, Callable[[int], None]], Callable[[np.ndarray, int | None], float]]


def open_model(path: Path) -> Scored:
    """Opens a bundle where there is a manifest, else a checkpoint.

    Args:
        path: its directory.

    Raises:
        BundleError: the bundle is not whole.
        CheckpointError: the checkpoint is not whole or has no tokenizer.
    """
    return _open_bundle(path) if (path / "manifest.json").is_file() else _open_checkpoint(path)


def require_same_split(other: Scored, main: Scored) -> None:
    """Refuses to set side by side two models of which one can't be the other before training.

    Args:
        other: the model of `--converted`.
        main: the model that is scored.

    Raises:
        DataError: their vocabulary, pooling, prelude or coda differ.
    """
    from ouroboros.errors import DataError

    for name in ("vocab_size", "pooling", "prelude", "coda"):
        ours, theirs = getattr(main.config, name), getattr(other.config, name)
        if ours != theirs:
            raise DataError(
                f"--converted has {name} {theirs}, the model {ours}",
                "give the checkpoint that it was trained from",
            )


def print_rows(rows: Sequence[Row], console: Any) -> None:
    """Prints one row a model and depth.

    Args:
        rows: the scores.
        console: a rich Console.
    """
    from functools import partial

    from rich.text import Text

    from cli.screen import new_table, print_table, split_columns

    def make(columns: Sequence[Column]) -> Table:
        table = new_table(title="held-out next-token loss (nats per token)")
        table.add_column("model", no_wrap=True)
        for name in ("depth", *(heading for heading, _ in columns)):
            table.add_column(Text(name), justify="right", no_wrap=True)
        for row in rows:
            depth = "–" if row.depth is None else str(row.depth)
            table.add_row(row.model, depth, *(cell(row) for _, cell in columns))
        return table

    means: list[Column] = [
        ("mean", lambda row: f"{row.mean:.3f}"),
        ("perplexity", lambda row: f"{row.perplexity:,.1f}"),
    ]
    texts: list[Column] = [(name, partial(_loss_of, name)) for name in rows[0].texts]
    for table in split_columns(means, texts, make, console):
        print_table(table, console)


# A heading and what stands under it.
Column = tuple[str, Callable[["Row"], str]]


def _loss_of(text: str, row: Row) -> str:
    return f"{row.texts[text]:.3f}"


def _open_checkpoint(path: Path) -> Scored:
    from functools import partial

    from ouroboros.checkpoint import load_checkpoint
    from ouroboros.errors import CheckpointError
    from ouroboros.evaluate import score_windows

    model, tokenizer = load_checkpoint(path)
    if tokenizer is None:
        raise CheckpointError(f"{path}: has no tokenizer.json", "convert the model again")
    config = model.config
    return Scored(
        name="trained" if config.trained_depths else "converted",
        config=config,
        pooling=config.pooling,
        max_depth=config.max_depth,
        tokenizer=tokenizer,
        check_depth=config.check_depth,
        scorer=lambda prefix, advance: partial(
            score_windows, model, prefix=prefix, advance=advance
        ),
    )


def _open_bundle(path: Path) -> Scored:
    from runtime.decode.request import check_depths
    from runtime.engine import Engine
    from runtime.measure.loss import score_windows

    engine = Engine.open(path)
    manifest = engine.manifest

    def scorer(
        prefix: int, advance: Callable[[int], None]
    ) -> Callable[[np.ndarray, int | None], float]:
        def score(array: np.ndarray, depth: int | None) -> float:
            done = 0

            def progress(now: int) -> None:
                nonlocal done
                advance(now - done)
                done = now

            return score_windows(engine, array, depth, prefix, progress=progress)

        return score

    return Scored(
        name="trained" if manifest.depth.trained else "converted",
        config=manifest.model,
        pooling=manifest.model.pooling,
        max_depth=manifest.depth.max,
        tokenizer=_BundleTokenizer(engine),
        check_depth=lambda depth: check_depths(depth, 1, manifest.depth),
        scorer=scorer,
    )


class _BundleTokenizer:
    """A bundle's tokenizer, called as transformers' are."""

    def __init__(self, engine: Engine) -> None:
        self._codec = engine.codec

    def __call__(
        self, texts: Sequence[str], add_special_tokens: bool = True, **_: object
    ) -> dict[str, list[list[int]]]:
        return {"input_ids": [self._codec.encode(text, add_special_tokens) for text in texts]}
