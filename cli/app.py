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
from cli.delta import delta, restore
from cli.doctor import doctor
from cli.errors import one_line_errors
from cli.evaluate import evaluate
from cli.export import export
from cli.halter import halter
from cli.inspect import inspect
from cli.run import run
from cli.sample import sample
from cli.train import train

PIPE_CLOSED = 141  # 128 + SIGPIPE
# Click's UsageError. Typer carries a click of its own, which has no public name for it.
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


class OneLineErrors(TyperGroup):
    """A command group that prints a known error as one line.

    Exit status: 1 for an error or a bad value, 2 for an unknown option or a missing argument, 130
    after Ctrl-C.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """Parses a command line, runs it and ends the process.

        Args:
            args: as for click's `Command.main`.
            extra: as for click's `Command.main`; standalone mode is what this is.

        Raises:
            SystemExit: always.
        """
        extra["standalone_mode"] = False  # so that click prints no errors of its own
        try:
            status = super().main(*args, **extra)
        except USAGE_ERROR as error:
            status = show_usage_error(error)
        sys.exit(status or 0)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parses the options before the command; as click's, but for Ctrl-C.

        Args:
            args: as for click's `Command.make_context`.
            extra: as for click's `Command.make_context`.

        Raises:
            SystemExit: with 130 after Ctrl-C.
        """
        with one_line_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for.

        Args:
            ctx: click's context, which holds `--debug`.

        Raises:
            SystemExit: with 1 after an error was printed, 130 after Ctrl-C.
        """
        try:
            with one_line_errors(bool(ctx.params.get("debug"))):
                return super().invoke(ctx)
        except BrokenPipeError:
            # The reader went away, as in `ouro run ... | head`; what is buffered has no taker.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None


def show_usage_error(error: Any) -> int:
    """Prints what is wrong with a command line and returns the exit status.

    Args:
        error: a UsageError of the click that Typer uses.
    """
    kind, context = type(error).__name__, getattr(error, "ctx", None)
    if kind == "NoArgsIsHelpError":
        error.show()
        return 2
    command = context.command_path if context else "ouro"
    message = " ".join(error.format_message().split()).rstrip(".")
    if details := getattr(error.__cause__, "errors", None):
        message += f"; given: {details()[0]['input']!r}"
    if kind == "NoSuchOption" and _takes_text(context):
        message += "; put -- before a text that begins with a dash"
    typer.echo(f"error: {message}; see `{command} --help`", err=True)
    bad_value = isinstance(error, typer.BadParameter) and kind != "MissingParameter"
    return 1 if bad_value else 2


def _takes_text(context: Any) -> bool:
    """Whether the command of a context has an argument that is any text."""
    parameters = context.command.params if context else []
    return any(one.param_type_name == "argument" for one in parameters)


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
    "sample": sample,
    "train": train,
    "halter": halter,
    "eval": evaluate,
    "export": export,
    "run": run,
    "check": check,
    "bench": bench,
    "inspect": inspect,
    "delta": delta,
    "restore": restore,
    "doctor": doctor,
}
for name, command in COMMANDS.items():
    app.command(name, no_args_is_help=command is not doctor)(command)
