"""What commands show on a terminal: bars while they work, tables that are never cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from cli.errors import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

Column = TypeVar("Column")


def new_table(*columns: str, title: str | None = None) -> Table:
    """Returns an empty table of the narrow kind that all commands print, with columns so called."""
    from rich.box import SIMPLE
    from rich.table import Table

    return Table(*columns, title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)


def as_written(text: object) -> Text:
    """Returns what stands in a file for a table: no markup, and nothing that steers a terminal."""
    from rich.text import Text

    return Text(visible(str(text)))


def print_prose(
    text: str, console: Console, style: str | None = None, markup: bool = False
) -> None:
    """Prints a line for people: broken between words on a terminal, whole in a pipe or file."""
    whole = not console.is_terminal
    console.print(text, style=style, markup=markup, highlight=False, soft_wrap=whole)


def print_facts(facts: Mapping[str, object], console: Console) -> None:
    """Prints names and values in two columns; a value too long for a terminal goes on below itself.

    Args:
        facts: values by name.
        console: where to.
    """
    from textwrap import wrap

    from rich.text import Text

    facts = {visible(name): value for name, value in facts.items()}
    left = max(map(len, facts)) + 2
    room = console.width - left if console.is_terminal else 0
    for name, value in facts.items():
        large = isinstance(value, int) and value >= 1_000_000
        shown = visible(f"{value:,}" if large else str(value))
        # On a narrow terminal values stand below their names.
        start, indent = (f"{name:{left}}", left) if room >= 20 or not room else (f"{name}\n  ", 2)
        width = max(20, console.width - indent)
        fits = not room or len(shown) <= width
        lines = [shown] if fits else wrap(shown, width, break_long_words=False)
        text = Text(start, style="bold").append(("\n" + " " * indent).join(lines), style="not bold")
        console.print(text, soft_wrap=True)


def natural_width(table: Table, console: Console) -> int:
    """Returns the columns that a table takes with nothing cut or wrapped."""
    from rich.measure import Measurement

    options = console.options.update(width=10_000)
    return Measurement.get(console, options, table).maximum


def print_table(table: Table, console: Console) -> None:
    """Prints a table with nothing cut: where it is too wide, the terminal breaks its lines.

    Args:
        table: what to print.
        console: where to.
    """
    from rich.console import Console

    width = natural_width(table, console)
    if width <= console.width:
        console.print(table)
        return
    wide = Console(
        file=console.file,
        width=width,
        force_terminal=console.is_terminal,
        no_color=console.no_color,
    )
    wide.print(table, soft_wrap=False)


def split_columns(
    fixed: Sequence[Column],
    columns: Sequence[Column],
    make: Callable[[Sequence[Column]], Table],
    console: Console,
) -> list[Table]:
    """Returns tables that each fit the console, with the columns shared out over them in order.

    Args:
        fixed: columns that the first table begins with.
        columns: to share out; each table has at least one.
        make: builds a table with some columns.
        console: a rich Console.
    """
    tables: list[Table] = []
    chosen: list[Column] = list(fixed)
    added = 0
    for column in columns:
        if added and natural_width(make([*chosen, column]), console) > console.width:
            tables.append(make(chosen))
            chosen, added = [], 0
        chosen.append(column)
        added += 1
    return [*tables, make(chosen)]


@contextmanager
def counting_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar with things done and time left on stderr, where that is a terminal.

    Args:
        what: is being done.
        total: things to do.

    Yields:
        Called with the number of things done since the last call.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.update(task, advance=count)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Shows what is being done and for how long on a terminal; lines go to stdout in any case.

    Args:
        what: is done at first.

    Yields:
        Called with each line; the newest stands beside the clock.
    """
    import typer
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console()
    if not console.is_terminal:
        yield typer.echo
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def say(line: str) -> None:
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            # A clock past the edge would be cut.
            progress.update(task, description=" ".join(line.split())[: max(8, console.width - 14)])

        yield say
