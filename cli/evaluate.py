"""`ouro eval`: held-out loss and perplexity by depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import parse_numbers, takes_options
from ouroboros.eval_options import DEPTHS, EvalOptions

if TYPE_CHECKING:
    from rich.table import Table

    from ouroboros.evaluate import Evaluation, Row
    from ouroboros.gap import Shortened
    from ouroboros.held_out import Scored


@takes_options(EvalOptions)
def evaluate(
    model: Annotated[Path, typer.Argument(help="a checkpoint or a bundle")],
    options: EvalOptions,
    text: Annotated[
        list[Path] | None, typer.Option(help="held-out text, a column each; repeatable")
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            help="depths, like 1,8 or 1-16; auto too, where there is a halter; default: what the "
            f"model runs of {','.join(map(str, DEPTHS))}"
        ),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            help="the model it was converted from: adds rows for it, whole and plainly shortened, "
            "and the share of the gap between the two that each row closes"
        ),
    ] = None,
    plain: Annotated[
        str | None,
        typer.Option(
            help="layers of --original that the shortened one keeps, first, between and last, like "
            "8,21,8 or 5,18-21,8; default: those that the model keeps (a bundle says them only "
            "beside --converted)"
        ),
    ] = None,
    converted: Annotated[
        Path | None, typer.Option(help="the untrained checkpoint: adds its rows")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write the figures to this file")] = None,
) -> None:
    """Score held-out text: the mean next-token loss by depth, and its perplexity.

    Every row is scored on the same windows, the first of each text. The share of a row is
    (dropped - row) / (dropped - full): 0 is the shortened original, 1 the whole.

    Examples:
      ouro eval trained --text wiki.txt --text code.txt
      ouro eval trained --text wiki.txt --converted converted --original ./SmolLM2-135M
      ouro eval bundle --text wiki.txt --original ./SmolLM2-135M --plain 8,21,8
      ouro eval bundle --text wiki.txt --depth 1,8 --json scores.json
      ouro eval adaptive --text wiki.txt --depth 1-8,auto
    """
    from functools import partial

    from rich import get_console

    from cli.errors import CommandError
    from cli.notices import plain_warnings
    from cli.output import require_writable, write_json
    from cli.screen import counting_bar
    from ouroboros.held_out import evaluate_texts
    from ouroboros.text.windows import read_eval_texts

    if not text:
        raise CommandError("no held-out text", "give --text FILE")
    require_writable(json, [model, *text, converted, Path(original) if original else None])
    depths = parse_depths(depth) if depth else []
    kept = None if plain is None else parse_plain(plain, original)
    check_models(model, converted, original, depths, options.seq_len)
    texts = read_eval_texts(text, lambda line: typer.echo(line, err=True))
    console = get_console()
    with plain_warnings():
        evaluation = evaluate_texts(
            open_model(model),
            texts,
            depths,
            options,
            converted=None if converted is None else open_model(converted),
            original=original,
            plain=kept,
            bar=partial(counting_bar, "scoring windows"),
        )
    print_rows(evaluation, console)
    if json is not None:
        write_json(json, evaluation.to_json())


def parse_depths(text: str) -> list[int | str]:
    """Depths as `--depth` takes them, `auto` last where it is among them.

    Raises:
        CommandError: something else.
    """
    parts = [part.strip() for part in text.split(",")]
    numbers = ",".join(part for part in parts if part != "auto")
    found: list[int | str] = list(parse_numbers(numbers, "--depth")) if numbers else []
    return [*found, "auto"] if "auto" in parts else found


def check_models(
    model: Path,
    converted: Path | None,
    original: str | None,
    depths: Sequence[int | str],
    seq_len: int,
) -> None:
    """Refuses what is wrong with any model before all of one is read; `check_model` says how."""
    from ouroboros.source.places import find_place

    check_model(model, depths, seq_len)
    if converted is not None:
        check_model(converted, [], seq_len)
    if original is not None:
        find_place(original)


def check_model(path: Path, depths: Sequence[int | str], seq_len: int) -> None:
    """Refuses, of a model's configuration or manifest alone, what it can't be asked for.

    Args:
        path: the directory of a bundle or a checkpoint.
        depths: to be run, `auto` may be among them.
        seq_len: tokens a window.

    Raises:
        BundleError: the manifest can't be read.
        CheckpointError: there is no checkpoint.
        ConfigError: a depth that the checkpoint does not run, or a configuration of none.
        EngineError: a depth that the bundle does not run.
        DataError: the model has no such position.
    """
    from ouroboros.checkpoint import read_config
    from ouroboros.held_out import check_depth
    from ouroboros.model.limits import check_seq_len
    from runtime.bundle.reader import read_manifest
    from runtime.decode.request import choose_depths
    from runtime.files.destinations import BUNDLES, kind_of

    if kind_of(path) in BUNDLES:
        manifest = read_manifest(path)
        for one in depths:
            choose_depths(one, None, 1, manifest.depth)
        check_seq_len(seq_len, manifest.model.max_position_embeddings)
    else:
        config = read_config(path)
        for one in depths:
            check_depth(config, one)
        check_seq_len(seq_len, config.max_position_embeddings)


def describe_scoring(evaluation: Evaluation) -> Iterator[str]:
    """Says on what the rows were scored, and of which gap the shares are."""
    counts = ", ".join(f"{count} {name}" for name, count in evaluation.windows.items())
    half = f", the second half scored after a prompt of {evaluation.prefix}"
    scored = half if any(row.depth == "auto" for row in evaluation.rows) else ""
    yield f"windows of {evaluation.seq_len} tokens, {counts}{scored}"
    if evaluation.shortened is not None:
        layers = f"{evaluation.shortened} of the original (dropped)"
        yield f"share: of the gap from {layers} to all of it (full)"


def parse_plain(text: str, original: str | None) -> Shortened:
    """The layers of `--plain`: first ones, a layer or a block between, last ones.

    Raises:
        CommandError: something else, or there is no original to shorten.
        ConfigError: the part between is neither a layer nor a block.
    """
    from cli.errors import CommandError
    from ouroboros.conversion.looped import parse_looped
    from ouroboros.gap import Shortened

    if original is None:
        raise CommandError("plain layers of no original", "give --original MODEL with --plain")
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not (parts[0].isdecimal() and parts[2].isdecimal()):
        raise CommandError(
            f"plain={text!r:.80} does not name first layers, layers between and last layers",
            "give it like 8,21,8 or 5,18-21,8, or 8,none,8 for nothing between",
        )
    first, count = parse_looped(parts[1])
    if first is None:
        raise CommandError(f"plain={text!r:.80} leaves the layers between open", "name them")
    return Shortened(int(parts[0]), range(first, first + count), int(parts[2]))


def open_model(path: Path) -> Scored:
    """Opens a bundle where there is one, whole or damaged, else a checkpoint.

    Args:
        path: its directory.

    Raises:
        BundleError: the bundle is not whole.
        CheckpointError: the checkpoint is not whole or has no tokenizer.
    """
    from ouroboros.held_out import ScoredCheckpoint
    from runtime.files.destinations import BUNDLES, kind_of
    from runtime.measure.loss import ScoredBundle

    return ScoredBundle.open(path) if kind_of(path) in BUNDLES else ScoredCheckpoint.open(path)


def print_rows(evaluation: Evaluation, console: Any) -> None:
    """Prints one row a model and depth, and what they were scored on.

    Args:
        evaluation: the scores.
        console: a rich Console.
    """
    from functools import partial

    from cli.screen import as_written, new_table, print_prose, print_table, split_columns

    def make(columns: Sequence[Column]) -> Table:
        table = new_table(title="held-out next-token loss (nats per token)")
        table.add_column("model", no_wrap=True)
        for name in ("depth", *(heading for heading, _ in columns)):
            table.add_column(as_written(name), justify="right", no_wrap=True)
        for row in evaluation.rows:
            depth = "–" if row.depth is None else str(row.depth)
            if row.mean_depth is not None:
                depth += f" {row.mean_depth:.2f}"
            table.add_row(as_written(row.model), depth, *(cell(row) for _, cell in columns))
        return table

    means: list[Column] = [
        ("mean", lambda row: f"{row.mean:.3f}"),
        ("perplexity", lambda row: f"{row.perplexity:,.1f}"),
    ]
    if evaluation.shortened is not None:
        means.append(("share", partial(_share_of, evaluation)))
    texts: list[Column] = [(name, partial(_loss_of, name)) for name in evaluation.rows[0].texts]
    for table in split_columns(means, texts, make, console):
        print_table(table, console)
    for line in describe_scoring(evaluation):
        print_prose(line, console, style="dim")


# A heading and what stands under it.
Column = tuple[str, Callable[["Row"], str]]


def _share_of(evaluation: Evaluation, row: Row) -> str:
    share = evaluation.share(row)
    return "–" if share is None else f"{share:.3f}"


def _loss_of(text: str, row: Row) -> str:
    return f"{row.texts[text]:.3f}"
