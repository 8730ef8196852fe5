"""Commands made from options classes, so that a default and its help stand once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.options import FLAGS, HELP

LARGEST = 1_000_000  # that a list of numbers may hold

# Of every command that opens a bundle.
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: every core")]
Backend = Annotated[
    str,
    typer.Option(
        help="what runs it: cpu, cuda, trt, or auto: a TensorRT plan that fits this machine, else "
        "CUDA, else the CPU"
    ),
]


def takes_options(
    kind: Any, *, name: str = "options", left_out: bool = False, apart: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for every field of an options class.

    Args:
        kind: a dataclass whose fields were made by `runtime.options.option`.
        name: the command's own parameter that receives them.
        left_out: every option may be left out, and what is received is a dict of those that were
            given: a recipe says the rest. Else it is a `kind`.
        apart: fields that the command declares itself.
    """

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(body, eval_str=True)
        hints = typing.get_type_hints(kind)
        made = {
            field.name: _parameter(field, hints[field.name], left_out)
            for field in dataclasses.fields(kind)
            if field.name not in apart
        }

        @functools.wraps(body)
        def command(**given: Any) -> None:
            values = {field: given.pop(field) for field in made}
            # What is None was left out, or is the default anyway.
            values = {field: one for field, one in values.items() if one is not None}
            body(**given, **{name: values if left_out else kind(**values)})

        kept = [one for one in own.parameters.values() if one.name != name]
        first = [one for one in kept if one.default is inspect.Parameter.empty]
        rest = [one for one in kept if one.default is not inspect.Parameter.empty]
        parameters = [*first, *made.values(), *rest]
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _parameter(field: dataclasses.Field[Any], hint: Any, left_out: bool) -> inspect.Parameter:
    default, help = field.default, str(field.metadata[HELP])
    if hint == int | str:
        hint = str
    elif typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        lists: dict[Any, Any] = {Path: list[Path] | None, str: list[str] | None, int: str | None}
        hint, default = lists[item], None
    if left_out and default is not None:
        help += f" (default {_shown(default)})" if default != "" else ""
        hint, default = hint | None, None
    flags = field.metadata[FLAGS]
    declared = typer.Option(*([flags] if flags else []), help=help)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=default,
        annotation=Annotated[hint, declared],
    )


def _shown(default: Any) -> str:
    """A default as help shows it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, int | float) else str(default)


def parse_numbers(text: str, option: str) -> list[int]:
    """Numbers from `1,4,8`, `1-16` or a mixture.

    Args:
        text: what the user gave.
        option: its name, for the error.

    Raises:
        CommandError: it is not such a list.
    """
    from cli.errors import CommandError

    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.strip().partition("-")
            numbers.extend(range(int(first), min(int(last or first), LARGEST) + 1))
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or max(numbers) >= LARGEST:
        raise CommandError(
            f"{option} {text} is not a list of numbers", "give it like 1,4,8 or 1-16"
        )
    return list(dict.fromkeys(numbers))
