"""The Typer app `ouro`. Heavy imports stay inside the commands, so that help is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli.bench import bench
from cli.check import check
from cli.convert import convert
from cli.errors import describe
from cli.evaluate import evaluate
from cli.export import export
from cli.inspect import inspect
from cli.run import run
from cli.train import train

INTERRUPTED = 130  # 128 + SIGINT, as shells count
PIPE_CLOSED = 141  # 128 + SIGPIPE


class OneLineErrors(TyperGroup):
    """A command group that prints a known error as one line and exits with status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for.

        Args:
            ctx: click's context, which holds `--debug`.

        Raises:
            typer.Exit: with 1 after an error was printed, 130 after Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            if ctx.params.get("debug"):
                raise
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader went away, as in `ouro run ... | head`; what is buffered has no taker.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None
        except Exception as error:
            line = None if ctx.params.get("debug") else describe(error)
            if line is None:
                raise
            typer.echo(f"error: {line}", err=True)
            raise typer.Exit(1) from None


def show_version(wanted: bool) -> None:
    """Prints the version and stops, where it was asked for.

    Args:
        wanted: `--version` was given.
    """
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ouroboros-llm {version('ouroboros-llm')}")
        raise typer.Exit


def start(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="OURO_DEBUG", help="Show tracebacks of errors.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Make a pretrained LLM recursive: one layer, looped as often as you ask.

    The order of things: convert, train, export, run.
    """


app = typer.Typer(
    name="ouro",
    add_completion=False,
    cls=OneLineErrors,
    callback=start,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "train": train,
    "eval": evaluate,
    "export": export,
    "run": run,
    "check": check,
    "bench": bench,
    "inspect": inspect,
}
for name, command in COMMANDS.items():
    app.command(name, no_args_is_help=True)(command)


def main() -> None:
    """Runs `ouro` with the arguments of this process."""
    try:
        app()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
