"""Options of a job as a frozen dataclass, which its command and its recipes are made from."""

from __future__ import annotations

import dataclasses
from typing import Any

HELP, FLAGS = "help", "flags"


def option(default: Any, help: str, flags: str | None = None) -> Any:
    """A field of an options class.

    Args:
        default: its value where none is given; here and nowhere else.
        help: a line for the command's help and the documentation.
        flags: as the command line has it, where that is not `--` and the field's name.
    """
    return dataclasses.field(default=default, metadata={HELP: help, FLAGS: flags})


def flag_of(kind: Any, name: str) -> str:
    """What the command line calls an option: the first of its flags.

    Args:
        kind: an options class.
        name: of a field.
    """
    (field,) = (one for one in dataclasses.fields(kind) if one.name == name)
    flags = field.metadata[FLAGS]
    return str(flags).split("/")[0] if flags else f"--{name.replace('_', '-')}"
