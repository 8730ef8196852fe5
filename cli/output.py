"""Files that a command writes beside what it prints: refused early, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cli.errors import CommandError
from runtime.files.replacing import replacing


def require_writable(file: Path | None, apart: Iterable[Path | None]) -> None:
    """Refuses a file that can't be written, before the work whose outcome it would hold.

    Args:
        file: as given on the command line; None where nothing was asked for.
        apart: what the command reads, and what else it writes: files, or directories as a whole;
            None is passed over.

    Raises:
        CommandError: it is a directory, its directory is not there, neither may be written, or it
            is one of `apart` or lies in one.
    """
    if file is None:
        return
    real = Path(os.path.realpath(file))
    for other in apart:
        if other is not None and real.is_relative_to(os.path.realpath(other)):
            where = "is" if real == Path(os.path.realpath(other)) else "lies in"
            raise CommandError(
                f"{file} {where} {other}, which this command uses", "give a file elsewhere"
            )
    if file.is_dir():
        raise CommandError(f"{file} is a directory", "give a file to write to")
    if not file.parent.is_dir():
        raise CommandError(f"{file}: its directory is not there", "make it, or give another file")
    # A file is replaced, which is a change of its directory; a pipe or device is written to.
    changed = [real] if real.exists() else []
    changed += [] if real.exists() and not real.is_file() else [real.parent]
    for path in changed:
        if not os.access(path, os.W_OK):
            raise CommandError(f"{file}: may not be written", "give another file")


def write_output(file: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside its place and renames it there.

    Args:
        file: the destination; a pipe or device is written to as it is.
        write: writes the content to the path that it is given, which has the same ending.

    Raises:
        CommandError: the disk is full or the file can't be written; what was there is unchanged.
    """
    target = file.resolve()
    if target.exists() and not target.is_file():
        write(target)
        return
    try:
        with replacing(target) as staged:
            write(staged)
    except OSError as error:
        reason = error.strerror or error
        raise CommandError(f"{file}: can't be written: {reason}", "it is as it was") from error


def write_json(file: Path, data: object) -> None:
    """Writes JSON values to a file, as `write_output` does.

    Args:
        file: the destination.
        data: what to write; no NaN or infinity.

    Raises:
        CommandError: as for `write_output`.
    """
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    write_output(file, lambda path: path.write_text(text, encoding="utf-8"))
